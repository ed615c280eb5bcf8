"""``prunescope doctor`` under real conditions: hubs, servers, folders and models as they fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
import safetensors.torch
from support.cli import ROWS, Finished, run_cli
from support.hub import Hub, running_hub, save_dataset
from support.loading import write_gguf
from support.server import free_port, fresh_store, proxy

from prunescope.cli.checks import (
    Check,
    check_devices,
    check_disk,
    check_memory,
    check_packages,
    check_python,
    check_shadowing,
    check_tracking,
    checked,
    worst,
)
from prunescope.evaluate.data.folder import read_manifest, read_rows
from prunescope.evaluate.loading import ModelSize, model_size
from prunescope.evaluate.machine import Device, cgroup_limit, free_bytes, list_devices
from prunescope.tracking.store import StoreDiagnosis, diagnose_store

GIB = 2**30


def doctor(cwd: Path, *arguments: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit code, and the checks by name."""
    done = run_cli(["doctor", "--json", *arguments], cwd)
    found: dict[str, list[dict[str, str]]] = {}
    for check in json.loads(done.stdout)["checks"]:
        found.setdefault(check["name"], []).append(check)
    return done.exit_code, found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as server:
        server.use(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def whole_data(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROWS, tmp_path / "rows"))


# --- the whole command --------------------------------------------------------------------------


def test_all_is_well_with_a_data_folder_and_no_hub(whole_data: Path, tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "--data-dir", str(whole_data))
    assert {check["status"] for checks in found.values() for check in checks} == {"ok"}, found
    assert code == 0
    assert "HF_HUB_OFFLINE" in found["hub"][0]["found"]
    assert "wikitext2" in found["data"][0]["found"]
    assert "first run creates" in found["tracking"][0]["found"]
    assert not (tmp_path / "mlruns").exists()


def test_every_problem_has_something_to_do_and_exit_code_1(
    whole_data: Path, tmp_path: Path
) -> None:
    (whole_data / "boolq/validation.jsonl").unlink()
    nobody = f"http://127.0.0.1:{free_port()}"
    code, found = doctor(
        tmp_path, "no/such/model", "--data-dir", str(whole_data), "--tracking-uri", nobody
    )
    assert code == 1
    for name, text in (("model", "no/such/model"), ("data", "boolq"), ("tracking", nobody)):
        (check,) = found[name]
        assert check["status"] == "problem"
        assert text in check["found"]
        assert check["to_do"]


def test_quiet_prints_the_verdict_alone(whole_data: Path, tmp_path: Path) -> None:
    done = run_cli(["doctor", "-q", "--data-dir", str(whole_data)], tmp_path)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("width", [80, 160])
def test_the_report_fits_the_terminal(
    width: int, whole_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = run_cli(["doctor", "--data-dir", str(whole_data)], tmp_path)
    widths = [len(line.rstrip()) for line in done.stdout.splitlines()]
    assert max(widths) <= width
    assert max(widths) > 80 or width == 80
    assert done.stdout.rstrip().endswith("doctor: all is well")
    assert "\x1b" not in done.stdout


def test_a_check_that_fails_by_itself_is_a_problem_and_no_traceback() -> None:
    def broken() -> tuple[Check, ...]:
        raise ZeroDivisionError("division\nby zero")

    (check,) = checked("device", broken)
    assert (check.name, check.status) == ("device", "problem")
    assert "ZeroDivisionError: division by zero" in check.found
    ok, warning = Check("a", "ok", ""), Check("b", "warning", "", "do")
    assert [worst(some) for some in ([ok], [ok, warning], [warning, check, ok], [])] == [
        *("ok", "warning", "problem", "ok")
    ]


# --- Python and packages ------------------------------------------------------------------------


def test_an_old_python_and_old_or_missing_packages_are_problems() -> None:
    assert check_python()[0].status == "ok"
    assert check_python((3, 10, 4), ">=3.11")[0].status == "problem"
    wanted = ["torch>=2.6", "rich>=13.9", "typer>=0.15", 'colorama>=99; sys_platform == "win32"']
    old, absent = check_packages(wanted, {"torch": "2.5.1+cu121", "rich": "14.0"})
    assert (old.status, absent.status) == ("problem", "problem")
    assert "torch is 2.5.1+cu121, expected >=2.6" in old.found
    assert 'pip install "typer>=0.15"' in absent.to_do
    (fine,) = check_packages(wanted, {"torch": "2.6.0+cu124", "rich": "13.9", "typer": "1.0"})
    assert fine.status == "ok"


def test_this_environment_has_what_pyproject_asks_for() -> None:
    import tomllib

    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    (check,) = check_packages(project["dependencies"])
    assert check.status == "ok", check


@pytest.mark.parametrize(
    ("name", "shadows"),
    [("evaluate/__init__.py", True), ("evaluate.py", True), ("evaluate/other.py", False)],
)
def test_what_shadows_evaluate_is_found_as_python_finds_it(
    name: str, shadows: bool, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine = True\n")
    program = "from importlib.util import find_spec; print(find_spec('evaluate').origin)"
    real = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (real.stdout.strip() == str(tmp_path / name)) is shadows
    (check,) = check_shadowing(tmp_path)
    assert check.status == ("warning" if shadows else "ok"), check
    assert (str(tmp_path / name) in check.found) is shadows
    (everywhere,) = check_shadowing(Path("/"), [str(tmp_path), *sys.path])
    assert everywhere.status == ("problem" if shadows else "ok")


# --- machine ------------------------------------------------------------------------------------


def test_the_cpu_computes_in_each_dtype_and_its_memory_is_the_kernels() -> None:
    cpu = list_devices()[-1]
    assert (cpu.name, set(cpu.dtypes)) == ("cpu", {"float32", "float16", "bfloat16"})
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    free, all_of_it = free_bytes()
    assert 0 < free <= all_of_it <= total


def test_a_control_groups_limit_counts_without_pages_that_the_kernel_may_drop(
    tmp_path: Path,
) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert cgroup_limit(tmp_path) == (450, 1000)
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_limit(tmp_path) is None


def device(name: str, free: float, **changes: Any) -> Device:
    every = ("float32", "float16", "bfloat16")
    return Device(name, "a device", int(free * GIB), 80 * GIB, changes.pop("dtypes", every))


@pytest.mark.parametrize(
    ("devices", "stored", "status", "text", "advice"),
    [
        ([device("cpu", 40)], "bfloat16", "ok", "in float32 take 29.8 GiB", ""),
        ([device("cpu", 31)], "bfloat16", "warning", "29.8 GiB", "--dtype bfloat16: 14.9 GiB"),
        ([device("cpu", 20)], "bfloat16", "problem", "29.8 GiB", "--dtype bfloat16: 14.9 GiB"),
        ([device("cpu", 9)], "bfloat16", "problem", "cpu has 9.0 GiB free", "larger machine"),
        ([device("cuda:0", 20), device("cpu", 9)], "bfloat16", "ok", "bfloat16 take 14.9 GiB", ""),
        ([device("cuda:0", 20), device("cpu", 9)], None, "ok", "float16 take 14.9 GiB", ""),
        (
            [device("cuda:0", 10), device("cuda:1", 10), device("cpu", 9)],
            "float16", "problem", "14.9 GiB", "--device-map auto",
        ),
        ([device("cuda:0", 10), device("cpu", 90)], "float16", "problem", "", "--device cpu"),
    ],
)  # fmt: skip
def test_memory_is_judged_by_the_dtype_that_the_model_would_run_in(
    devices: list[Device], stored: str | None, status: str, text: str, advice: str
) -> None:
    (check,) = check_memory(ModelSize(8_000_000_000, stored), devices)
    assert check.status == status
    assert text in check.found
    assert (advice in check.to_do) if advice else not check.to_do


def test_devices_that_cannot_do_what_is_asked_are_warned_of() -> None:
    old = device("cuda:0", 8, dtypes=("float32", "float16"))
    first, second = check_devices([old, device("cpu", 8)], driver=True)
    assert (first.status, second.status) == ("warning", "ok")
    assert "--dtype float32" in first.to_do
    found = check_devices([device("cpu", 8)], driver=True)
    assert "finds no GPU" in found[-1].found
    assert [check.status for check in check_devices([device("cpu", 8)], driver=False)] == ["ok"]


def test_a_folder_that_is_a_file_or_too_small_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (check,) = check_disk([("records", tmp_path / "file" / "mlruns")])
    assert check.status == "problem"
    records, downloads = check_disk([("records", tmp_path), ("hub downloads", tmp_path)], 2**60)
    assert records.status != "problem"
    assert downloads.status == "problem"
    assert "HF_HOME" in downloads.to_do


def parameters(folder: Path) -> int:
    tensors: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= safetensors.torch.load_file(file)
    return sum(tensor.numel() for tensor in tensors.values())


def test_a_models_size_is_read_from_the_headers_of_every_kind(
    tiny_llama: Path, tmp_path: Path
) -> None:
    assert model_size(str(tiny_llama)) == ModelSize(parameters(tiny_llama), "float32")
    for kind in ("Q8_0", "F16"):
        weights = write_gguf(tmp_path / f"{kind}.gguf", kind)
        size = model_size(str(tmp_path / f"{kind}.gguf"))
        assert size is not None
        assert size.parameters == sum(tensor.numel() for tensor in weights.values())
        assert size.stored_dtype == {"F16": "float16"}.get(kind)


def test_a_hub_models_size_comes_without_its_weights(
    hub: Hub, tiny_llama: Path, tmp_path: Path
) -> None:
    hub.add_model("someone/tiny", tiny_llama)
    size = model_size("someone/tiny")
    weights = tiny_llama / "model.safetensors"
    assert size == ModelSize(parameters(tiny_llama), "float32", weights.stat().st_size)
    assert not list((tmp_path / "home").rglob("*.safetensors"))


# --- hub and data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        ({}, "answers"),
        ({"status": 503}, "failing (status 503)"),
        ({"page": "<html>Please sign in</html>"}, "not as a Hugging Face hub does"),
        ("stopped", "cannot be reached (connection refused)"),
    ],
    ids=["mirror", "failing", "login page", "stopped"],
)
def test_the_hub_is_told_apart_from_what_stands_in_its_place(
    hub: Hub, trouble: Mapping[str, Any] | str, text: str, whole_data: Path, tmp_path: Path
) -> None:
    if isinstance(trouble, str):
        hub.stop()
    else:
        for name, value in trouble.items():
            setattr(hub, name, value)
    code, found = doctor(tmp_path)
    (check,) = found["hub"]
    assert text in check["found"]
    assert hub.url in check["found"]
    assert (check["status"], code) == (("problem", 1) if trouble else ("ok", 0))
    code, found = doctor(tmp_path, "--data-dir", str(whole_data))
    assert (found["hub"][0]["status"], code) == ("warning" if trouble else "ok", 0)


PARTS = {
    "boolq": ("aps/super_glue", "boolq"),
    "rte": ("nyu-mll/glue", "rte"),
    "hellaswag": ("Rowan/hellaswag", "default"),
    "winogrande": ("allenai/winogrande", "winogrande_xl"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "openbookqa": ("allenai/openbookqa", "main"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}
"""Where the hub keeps each task's rows."""


def publish(hub: Hub, folder: Path) -> None:
    """The hand-written rows as the hub's data sets."""
    manifest = read_manifest(ROWS)
    sets: dict[str, dict[str, Any]] = {}
    for name, (repository, part) in PARTS.items():
        splits = {split: read_rows(ROWS, file) for split, file in manifest.splits(name).items()}
        sets.setdefault(repository, {})[part] = splits
    for repository, parts in sets.items():
        hub.add_dataset(repository, save_dataset(folder / repository, parts))


@pytest.mark.slow
def test_without_the_hub_earlier_downloads_suffice_as_they_do_for_an_evaluation(
    hub: Hub, tiny_llama: Path, tmp_path: Path, empty_database: Path
) -> None:
    publish(hub, tmp_path / "published")
    fresh_store(empty_database, tmp_path / "mlruns")
    evaluation = ["eval", str(tiny_llama), "--limit", "2", "--seqlen", "64", "--device", "cpu"]
    assert run_cli(evaluation, tmp_path).exit_code == 0
    hub.stop()
    code, found = doctor(tmp_path)
    assert (code, found["data"][0]["status"], found["hub"][0]["status"]) == (0, "ok", "warning")
    assert run_cli([*evaluation, "--force"], tmp_path).exit_code == 0
    (cached,) = (tmp_path / "home").rglob("datasets/allenai___openbookqa")
    shutil.rmtree(cached)
    code, found = doctor(tmp_path)
    assert (code, found["data"][0]["status"], found["hub"][0]["status"]) == (
        1,
        "skipped",
        "problem",
    )
    assert found["data"][0]["found"].endswith(
        "boolq, rte, hellaswag, winogrande, arc_easy, arc_challenge, wikitext2"
    )
    assert run_cli([*evaluation, "--force"], tmp_path).exit_code == 2


def test_a_partial_data_folder_names_what_is_missing(whole_data: Path, tmp_path: Path) -> None:
    path = whole_data / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = [f for f in manifest["files"] if f["task"] not in ("rte", "wikitext2")]
    path.write_text(json.dumps(manifest))
    code, found = doctor(tmp_path, "--data-dir", str(whole_data))
    (check,) = found["data"]
    assert (code, check["status"]) == (0, "warning")
    assert "missing: rte, wikitext2" in check["found"]
    assert "prunescope data pull" in check["to_do"]
    assert "--ppl-corpus boolq-passages" in check["to_do"]
    assert found["hub"][0]["status"] == "warning"  # offline, and now it is needed


# --- tracking -----------------------------------------------------------------------------------


def test_a_server_is_written_to_and_left_as_it_was(mlflow_server: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(mlflow_server)
    name = client.get_experiment("0").name
    found = diagnose_store(mlflow_server, root=tmp_path, experiment=name)
    assert found == StoreDiagnosis(
        mlflow_server, "server", mlflow.__version__, mlflow.__version__, name, True, None,
        client.get_experiment("0").artifact_location,
    )  # fmt: skip
    assert "prunescope.doctor" not in client.get_experiment("0").tags
    answer = mlflow.artifacts.list_artifacts(
        artifact_uri="mlflow-artifacts:/0", tracking_uri=mlflow_server
    )
    assert not [entry.path for entry in answer if "doctor" in entry.path]
    _, checks = doctor(tmp_path, "--tracking-uri", mlflow_server)
    assert checks["tracking"][0]["status"] == "ok"
    assert "written and removed again" in checks["tracking write"][0]["found"]


def refusing(address: str, what: str, status: int) -> Any:
    """A proxy that refuses requests whose method and path contain ``what``."""
    body = b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'
    return proxy(
        address, lambda method, path: (status, body) if what in f"{method} {path}" else None
    )


@pytest.mark.parametrize(
    ("what", "status", "name", "text"),
    [
        ("GET /health", 401, "tracking", "asks for credentials"),
        ("set-experiment-tag", 403, "tracking write", "does not allow this"),
        ("PUT ", 403, "tracking write", "403"),
        ("PUT ", 200, "tracking write", "did not arrive"),
    ],
)
def test_what_a_server_refuses_is_named(
    mlflow_server: str, what: str, status: int, name: str, text: str, tmp_path: Path
) -> None:
    experiment = "prunescope"
    client = mlflow.MlflowClient(mlflow_server)
    if client.get_experiment_by_name(experiment) is None:
        client.create_experiment(experiment)
    with refusing(mlflow_server, what, status) as (address, _):
        _, found = doctor(tmp_path, "--tracking-uri", address)
    (check,) = found[name]
    assert check["status"] == "problem"
    assert text in check["found"]
    assert "MLFLOW_TRACKING_USERNAME" in check["to_do"]


def test_an_older_server_and_one_without_artifacts_are_warned_of() -> None:
    found = StoreDiagnosis("http://a:5000", "server", "3.17.2", "2.22.0", "prunescope", True, None)
    old, write = check_tracking(found)
    assert (old.status, write.status) == ("warning", "ok")
    folder = StoreDiagnosis(
        "http://a:5000", "server", "3.17.2", "3.17.2", "prunescope", True, None, "/srv/mlruns/1"
    )
    assert "client's own disk" in check_tracking(folder)[-1].found


def test_the_embedded_store_is_tried_without_leaving_anything(
    empty_store: Path, tmp_path: Path
) -> None:
    database = empty_store / "mlflow.db"
    before = database.read_bytes()
    _, found = doctor(tmp_path)
    (check,) = found["tracking"]
    assert check["status"] == "ok"
    assert "rolled back" in check["found"]
    assert database.read_bytes() == before
    with locked(database):
        (check,) = doctor(tmp_path)[1]["tracking"]
    assert (check["status"], "database is locked" in check["found"]) == ("problem", True)
    database.write_bytes(b"no database" * 100)
    (check,) = doctor(tmp_path)[1]["tracking"]
    assert (check["status"], "not a database" in check["found"]) == ("problem", True)


def locked(database: Path) -> Any:
    import contextlib
    import sqlite3

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield

    return hold()


def test_nothing_of_torch_is_loaded_to_name_the_command(tmp_path: Path) -> None:
    program = "import sys, prunescope.cli.checks; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ},
    )  # fmt: skip
    assert done.stdout.strip() == "False"
    assert isinstance(run_cli(["doctor", "--help"], tmp_path), Finished)
