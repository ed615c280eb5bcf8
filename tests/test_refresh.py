"""``prunescope refresh``: a pruned run whose baseline arrived after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from support.cli import Finished, run_cli
from support.records import EXAMPLES, write_example
from support.server import fresh_store, proxy

from prunescope.cli.publishing import Tracker, publish
from prunescope.cli.refreshing import refresh_runs
from prunescope.errors import PrunescopeError
from prunescope.records import RunRef, new_record_id, read_record, write_record
from prunescope.tracking.baselines import WANTED_TAG
from prunescope.tracking.history.bundle import BASELINE_TAG
from prunescope.tracking.runs import MANIFEST_TAG
from prunescope.tracking.spool import mark_uploaded
from prunescope.tracking.store import Store, StoredRun, open_store

NOTE = "mlflow.note.content"


def write(folder: Path, which: str, record_id: str, **labels: object) -> Path:
    """An example's record directory under another id, so that tests can share a server."""
    record = write_example(folder, which)
    known = record.labels.model_copy(update=labels)
    write_record(folder, record.model_copy(update={"record_id": record_id, "labels": known}))
    return folder


def send(store: Store, folder: Path) -> RunRef:
    outcome = publish(folder, Tracker(folder.parent, store, "refresh"))
    assert outcome.run is not None, outcome.problem
    return outcome.run


@pytest.fixture(params=["embedded", "server"])
def uri(request: pytest.FixtureRequest, empty_database: Path, tmp_path: Path) -> Iterator[str]:
    if request.param == "server":
        yield request.getfixturevalue("mlflow_server")
    else:
        yield fresh_store(empty_database, tmp_path / "mlruns").uri


@pytest.fixture
def store(uri: str, tmp_path: Path) -> Store:
    return open_store(uri, root=tmp_path / "mlruns")


@pytest.fixture
def late(store: Store, tmp_path: Path) -> tuple[RunRef, RunRef]:
    """A pruned run, and its baseline that was sent after it."""
    original_id = new_record_id()
    tags = {BASELINE_TAG: original_id}
    pruned = send(store, write(tmp_path / "pruned", "pruned", new_record_id(), tags=tags))
    assert "delta/ppl_ratio" not in store.get(pruned.run_id).metrics
    return send(store, write(tmp_path / "original", "original", original_id)), pruned


def refresh(store: Store, folder: Path, *arguments: str) -> Finished:
    return run_cli(["refresh", "--tracking-uri", store.uri, *arguments], folder)


def fields(run: StoredRun) -> tuple[dict[str, float], dict[str, str]]:
    return dict(run.metrics), dict(run.tags)


def right_order(store: Store, folder: Path) -> StoredRun:
    """The same pair, sent in the order in which nothing needs to be refreshed."""
    original = send(store, write(folder / "first", "original", new_record_id()))
    labels = {"baseline_run_id": original.run_id}
    pruned = send(store, write(folder / "second", "pruned", new_record_id(), **labels))
    return store.get(pruned.run_id)


def test_the_note_the_figures_and_the_reports_become_those_of_the_right_order(
    store: Store, late: tuple[RunRef, RunRef], tmp_path: Path
) -> None:
    original, pruned = late
    done = refresh(store, tmp_path, pruned.run_id)
    assert done.exit_code == 0, done.stderr
    run, wanted = store.get(pruned.run_id), right_order(store, tmp_path / "right")
    assert run.metrics == wanted.metrics
    assert run.metrics["delta/mean_points"] < 0 < run.metrics["delta/ppl_ratio"]
    assert run.baseline_run_id == original.run_id
    note = run.tags[NOTE]
    assert "| AVERAGE" in note.replace("**", "")
    assert store.run_link(original) in note
    assert store.compare_link(original, pruned) in note

    def without_links(text: str) -> list[str]:
        return [line for line in text.splitlines() if "](#/" not in line]

    assert without_links(note) == without_links(wanted.tags[NOTE])
    back = store.fetch(run, tmp_path / "back", everything=True)
    for name in ("report.md", "report.html"):
        text = (back / name).read_text()
        assert original.run_id in text and pruned.run_id in text
    assert read_record(back) == read_record(tmp_path / "pruned")


def test_a_second_time_writes_nothing(
    store: Store, late: tuple[RunRef, RunRef], tmp_path: Path
) -> None:
    pruned = late[1]
    first = json.loads(refresh(store, tmp_path, pruned.run_id, "--json").stdout)
    (told,) = first["runs"]
    assert told["status"] == "updated"
    assert set(told["changed"]) == {
        "baseline",
        "note",
        "delta/mean_points",
        "delta/ppl_ratio",
        "report.md",
        "report.html",
    }
    before = store.get(pruned.run_id)
    second = json.loads(refresh(store, tmp_path, pruned.run_id, "--json").stdout)
    (again,) = second["runs"]
    assert (again["status"], again["changed"]) == ("up to date", [])
    assert again["metrics"] == told["metrics"]
    assert fields(store.get(pruned.run_id)) == fields(before)
    history = MlflowClient(store.uri).get_metric_history(pruned.run_id, "delta/ppl_ratio")
    assert len(history) == 1


def test_a_run_of_the_right_order_is_up_to_date(store: Store, tmp_path: Path) -> None:
    run = right_order(store, tmp_path / "right")
    (found,) = refresh_runs(run.ref.run_id, tracking_uri=store.uri, root=tmp_path / "mlruns")
    assert (found.status, found.changed) == ("up to date", ())
    assert fields(store.get(run.ref.run_id)) == fields(run)


def test_the_manifest_vouches_for_the_new_reports(
    store: Store, late: tuple[RunRef, RunRef], tmp_path: Path
) -> None:
    pruned = late[1]
    before = store.get(pruned.run_id).tags[MANIFEST_TAG]
    refresh(store, tmp_path, pruned.run_id)
    client = MlflowClient(store.uri)
    manifest = Path(client.download_artifacts(pruned.run_id, "manifest.json", str(tmp_path)))
    tag = store.get(pruned.run_id).tags[MANIFEST_TAG]
    assert tag == hashlib.sha256(manifest.read_bytes()).hexdigest() != before
    entries = {one["path"]: one for one in json.loads(manifest.read_text())["files"]}
    listed = {entry.path for entry in client.list_artifacts(pruned.run_id)}
    assert {path.partition("/")[0] for path in entries} | {"manifest.json"} == listed
    for path, entry in entries.items():
        content = Path(client.download_artifacts(pruned.run_id, path, str(tmp_path))).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            entry["size"],
            entry["sha256"],
        )


def test_sending_the_record_again_keeps_what_was_refreshed(
    store: Store, late: tuple[RunRef, RunRef], tmp_path: Path
) -> None:
    pruned = late[1]
    refresh(store, tmp_path, pruned.run_id)
    before = store.get(pruned.run_id)
    assert send(store, tmp_path / "pruned").run_id == pruned.run_id
    after = store.get(pruned.run_id)
    assert after.metrics == before.metrics
    assert (after.tags[NOTE], after.baseline_run_id) == (before.tags[NOTE], before.baseline_run_id)
    (found,) = refresh_runs(pruned.run_id, tracking_uri=store.uri, root=tmp_path / "mlruns")
    assert found.status == "up to date"


# --- on the embedded store alone ----------------------------------------------------------------


@pytest.fixture
def here(empty_database: Path, tmp_path: Path) -> Store:
    """The embedded store under ``tmp_path``."""
    return fresh_store(empty_database, tmp_path / "mlruns")


def unlinked(store: Store, folder: Path) -> tuple[RunRef, RunRef]:
    """An original and a pruned run that names none."""
    pruned = send(store, write(folder / "pruned", "pruned", new_record_id()))
    return send(store, write(folder / "original", "original", new_record_id())), pruned


def test_a_baseline_that_is_named_is_kept(here: Store, tmp_path: Path) -> None:
    original, pruned = unlinked(here, tmp_path)
    before = here.get(pruned.run_id)
    done = run_cli(["refresh", pruned.run_id], tmp_path)
    assert done.exit_code == 2
    assert "--baseline" in done.stderr
    everything = run_cli(["refresh"], tmp_path)
    assert (everything.exit_code, "1 without a baseline" in everything.stdout) == (0, True)
    dry = run_cli(["refresh", pruned.run_id, "--baseline", original.run_id, "--dry-run"], tmp_path)
    assert dry.exit_code == 0
    assert "would write" in dry.stdout
    assert fields(here.get(pruned.run_id)) == fields(before)
    done = run_cli(["refresh", pruned.run_id, "--baseline", original.run_id], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert here.get(pruned.run_id).baseline_run_id == original.run_id
    assert "1 up to date" in run_cli(["refresh"], tmp_path).stdout
    # Whoever asks for the run alone now gets the comparison.
    assert run_cli(["compare", pruned.run_id, "-o", "out"], tmp_path).exit_code == 0
    # Its record, sent again, still does not name the baseline; its run does.
    assert send(here, tmp_path / "pruned").run_id == pruned.run_id
    assert "1 up to date" in run_cli(["refresh"], tmp_path).stdout


def test_a_baseline_is_not_exchanged(here: Store, tmp_path: Path) -> None:
    run = right_order(here, tmp_path)
    other = send(here, write(tmp_path / "other", "original", new_record_id()))
    done = run_cli(["refresh", run.ref.run_id, "--baseline", other.run_id], tmp_path)
    assert done.exit_code == 2
    assert "its baseline is" in done.stderr
    assert fields(here.get(run.ref.run_id)) == fields(run)


@pytest.mark.parametrize("sides", [("original", "pruned"), ("pruned", "broken")])
def test_an_original_gets_no_baseline_and_a_pruned_model_is_none(
    here: Store, tmp_path: Path, sides: tuple[str, str]
) -> None:
    run, baseline = (send(here, write(tmp_path / s, s, new_record_id())) for s in sides)
    done = run_cli(["refresh", run.run_id, "--baseline", baseline.run_id], tmp_path)
    assert done.exit_code == 2
    assert here.get(run.run_id).baseline_run_id is None


def test_a_baseline_needs_named_runs(here: Store, tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="runs that are named"):
        refresh_runs(baseline="latest:x", root=tmp_path / "mlruns")


def test_a_baseline_known_by_another_servers_run_is_found_through_this_machines_records(
    here: Store, tmp_path: Path
) -> None:
    records = tmp_path / "mlruns" / "records"
    elsewhere = "f" * 32
    pruned = send(here, write(records / "b", "pruned", new_record_id(), baseline_run_id=elsewhere))
    assert run_cli(["refresh", pruned.run_id], tmp_path).exit_code == 2
    folder = write(records / "a", "original", new_record_id())
    original = send(here, folder)
    ref = original.model_copy(update={"run_id": elsewhere, "tracking_uri": "http://other:5000"})
    mark_uploaded(folder, ref)
    done = run_cli(["refresh", pruned.run_id], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert here.get(pruned.run_id).baseline_run_id == original.run_id


def test_a_baseline_that_was_deleted_and_sent_again_is_found_by_its_record(
    here: Store, tmp_path: Path
) -> None:
    run = right_order(here, tmp_path)
    old = str(run.baseline_run_id)
    MlflowClient(here.uri).delete_run(old)
    assert "1 without a baseline" in run_cli(["refresh"], tmp_path).stdout
    new = send(here, tmp_path / "first")
    assert new.run_id != old
    assert run_cli(["compare", run.ref.run_id, "-o", "out"], tmp_path).exit_code == 0
    assert "1 updated" in run_cli(["refresh"], tmp_path).stdout
    after = here.get(run.ref.run_id)
    assert after.baseline_run_id == new.run_id
    assert old not in after.tags[NOTE]
    back = here.fetch(after, tmp_path / "back", everything=True)
    assert new.run_id in (back / "report.md").read_text()
    assert "1 up to date" in run_cli(["refresh"], tmp_path).stdout
    assert after.metrics == run.metrics


def test_what_somebody_wrote_into_the_note_stays(here: Store, tmp_path: Path) -> None:
    original, pruned = unlinked(here, tmp_path)
    here.annotate(pruned.run_id, tags={NOTE: "Seed 3, do not quote."})
    arguments = ["refresh", pruned.run_id, "--baseline", original.run_id]
    assert run_cli(arguments, tmp_path).exit_code == 0
    note = here.get(pruned.run_id).tags[NOTE]
    assert note.endswith("\n---\nSeed 3, do not quote.")
    assert here.run_link(original) in note
    here.annotate(pruned.run_id, tags={NOTE: f"{note}\nChecked."})
    assert "1 up to date" in run_cli(arguments, tmp_path).stdout
    assert here.get(pruned.run_id).tags[NOTE] == f"{note}\nChecked."
    send(here, tmp_path / "pruned")
    assert here.get(pruned.run_id).tags[NOTE] == f"{note}\nChecked."


def test_an_interrupted_refresh_is_completed_by_the_next(here: Store, tmp_path: Path) -> None:
    original, pruned = unlinked(here, tmp_path)
    client = MlflowClient(here.uri)
    client.delete_tag(pruned.run_id, MANIFEST_TAG)  # where it is killed at the worst
    (tmp_path / "report.html").write_text("half")
    client.log_artifact(pruned.run_id, str(tmp_path / "report.html"))
    done = run_cli(["refresh", pruned.run_id, "--baseline", original.run_id], tmp_path)
    assert done.exit_code == 0, done.stderr
    run = here.get(pruned.run_id)
    assert run.is_complete
    assert (
        original.run_id
        in (here.fetch(run, tmp_path / "back", everything=True) / "report.html").read_text()
    )


STEPS = {
    "report": ("PUT", "report.html"),
    "tag goes": ("", "delete-tag"),
    "manifest": ("PUT", "manifest.json"),
    "tag comes": ("", "set-tag"),
    "note": ("", "log-batch"),
}


@pytest.mark.parametrize("step", STEPS)
def test_wherever_a_refresh_breaks_off_the_run_can_be_read_and_the_next_completes_it(
    mlflow_server: str, tmp_path: Path, step: str
) -> None:
    store = open_store(mlflow_server, root=tmp_path / "mlruns")
    original, pruned = unlinked(store, tmp_path)

    def refuse(method: str, path: str) -> tuple[int, bytes] | None:
        verb, end = STEPS[step]
        hit = path.partition("?")[0].endswith(end) and verb in ("", method)
        return (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}') if hit else None

    def refresh_at(address: str) -> Finished:
        names = [pruned.run_id, "--baseline", original.run_id, "--tracking-uri", address]
        return run_cli(["refresh", *names], tmp_path)

    with proxy(mlflow_server, refuse) as (address, _):
        assert refresh_at(address).exit_code == 2
    between = store.fetch(store.get(pruned.run_id), tmp_path / "between", everything=True)
    assert read_record(between) == read_record(tmp_path / "pruned")
    done = refresh_at(mlflow_server)
    assert done.exit_code == 0, done.stderr
    assert "updated" in done.stdout
    run = store.get(pruned.run_id)
    assert run.is_complete
    assert run.baseline_run_id == original.run_id
    back = store.fetch(run, tmp_path / "back", everything=True)
    assert all(original.run_id in (back / f"report.{kind}").read_text() for kind in ("md", "html"))
    manifest = MlflowClient(store.uri).download_artifacts(pruned.run_id, "manifest.json")
    assert run.tags[MANIFEST_TAG] == hashlib.sha256(Path(manifest).read_bytes()).hexdigest()
    for entry in json.loads(Path(manifest).read_text())["files"]:
        if entry["path"].startswith("report"):
            content = (back / entry["path"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert "1 up to date" in refresh_at(mlflow_server).stdout


def test_a_run_whose_record_was_changed_gets_no_new_manifest(here: Store, tmp_path: Path) -> None:
    original, pruned = unlinked(here, tmp_path)
    client = MlflowClient(here.uri)
    client.delete_tag(pruned.run_id, MANIFEST_TAG)
    record = read_record(tmp_path / "pruned").model_copy(update={"record_key": None})
    write_record(tmp_path / "forged", record)
    client.log_artifact(pruned.run_id, str(tmp_path / "forged" / "record.json"))
    before = here.get(pruned.run_id)
    done = run_cli(["refresh", pruned.run_id, "--baseline", original.run_id], tmp_path)
    assert done.exit_code == 2
    assert "is not the one that was sent" in done.stderr
    assert fields(here.get(pruned.run_id)) == fields(before)


def test_a_model_that_was_not_pruned_at_all_is_noticed(here: Store, tmp_path: Path) -> None:
    pruned = send(here, write(tmp_path / "b", "original", new_record_id(), role="pruned"))
    original = send(here, write(tmp_path / "a", "original", new_record_id()))
    arguments = ["refresh", pruned.run_id, "--baseline", original.run_id]
    assert run_cli(arguments, tmp_path).exit_code == 0
    run = here.get(pruned.run_id)
    assert "weights-unchanged" in run.tags["prunescope.alarms"]
    assert "answers-unchanged" in run.tags["prunescope.alarms"]
    assert "identical" in run.tags[NOTE]
    assert "1 up to date" in run_cli(arguments, tmp_path).stdout


def test_every_pruned_run_is_looked_at_and_a_damaged_one_named(here: Store, tmp_path: Path) -> None:
    original, pruned = unlinked(here, tmp_path)
    here.annotate(pruned.run_id, tags={"prunescope.baseline_run_id": original.run_id})
    damaged = send(here, write(tmp_path / "other", "broken", new_record_id()))
    here.annotate(damaged.run_id, tags={"prunescope.baseline_run_id": original.run_id})
    (tmp_path / "record.json").write_text("{}")
    MlflowClient(here.uri).log_artifact(damaged.run_id, str(tmp_path / "record.json"))
    done = run_cli(["refresh", "--quiet"], tmp_path)
    assert done.exit_code == 2
    assert done.stdout.split() == [pruned.run_id]
    assert damaged.run_id[:8] in done.stderr
    assert here.get(pruned.run_id).metrics["delta/ppl_ratio"] > 1


def test_only_one_experiment_is_looked_at(here: Store, tmp_path: Path) -> None:
    unlinked(here, tmp_path)
    assert "no finished run" in run_cli(["refresh", "--experiment", "other"], tmp_path).stdout
    assert (
        "1 without a baseline" in run_cli(["refresh", "--experiment", "refresh"], tmp_path).stdout
    )


def test_torch_is_not_needed(here: Store, tmp_path: Path) -> None:
    import subprocess
    import sys

    original, pruned = unlinked(here, tmp_path)
    program = (
        "import sys; from prunescope.cli.refreshing import refresh_runs\n"
        f"(one,) = refresh_runs({pruned.run_id!r}, baseline={original.run_id!r})\n"
        "print(one.status, {'torch', 'transformers', 'lm_eval'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["updated", "set()"]


def test_a_baseline_of_several_runs_is_fetched_once(mlflow_server: str, tmp_path: Path) -> None:
    store = open_store(mlflow_server, root=tmp_path / "mlruns")
    original = send(store, write(tmp_path / "a", "original", new_record_id()))
    runs = []
    for number in range(3):
        chosen = replace(EXAMPLES["pruned"], record_id=new_record_id())
        folder = tmp_path / f"b{number}"
        write_example(folder, chosen)
        runs.append(send(store, folder))
    with proxy(mlflow_server) as (address, seen):
        names = [run.run_id for run in runs]
        found = refresh_runs(
            *names, baseline=original.run_id, tracking_uri=address, root=tmp_path / "mlruns"
        )
        assert [one.status for one in found] == ["updated"] * 3
    tokens = [path for method, path in seen if method == "GET" and "tokens/wikitext2" in path]
    assert len(tokens) == 4


# --- compare --log ------------------------------------------------------------------------------


def test_a_logged_comparison_refreshes_a_run_that_names_no_baseline(
    here: Store, tmp_path: Path
) -> None:
    original, pruned = unlinked(here, tmp_path)
    done = run_cli(["compare", original.run_id, pruned.run_id, "--log", "-o", "out"], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert f"updated {pruned.run_name}" in done.stderr
    run = here.get(pruned.run_id)
    assert run.baseline_run_id == original.run_id
    assert here.compare_link(original, pruned) in run.tags[NOTE]
    assert run.metrics["delta/ppl_ratio"] > 1
    before = fields(run)
    again = run_cli(["compare", pruned.run_id, "--log", "-o", "out"], tmp_path)
    assert again.exit_code == 0, again.stderr
    assert "updated" not in again.stderr
    assert fields(here.get(pruned.run_id)) == before


def test_a_logged_comparison_with_another_run_leaves_the_baseline(
    here: Store, tmp_path: Path
) -> None:
    run = right_order(here, tmp_path)
    other = send(here, write(tmp_path / "other", "original", new_record_id()))
    arguments = ["compare", other.run_id, run.ref.run_id, "--log", "-o", "out"]
    done = run_cli(arguments, tmp_path)
    assert done.exit_code == 0, done.stderr
    assert fields(here.get(run.ref.run_id)) == fields(run)


@pytest.mark.parametrize("sides", [("pruned", "broken"), ("pruned", "original")])
def test_a_logged_comparison_makes_no_baseline_of_a_pruned_model(
    here: Store, tmp_path: Path, sides: tuple[str, str]
) -> None:
    first, second = (send(here, write(tmp_path / s, s, new_record_id())) for s in sides)
    before = [fields(here.get(side.run_id)) for side in (first, second)]
    done = run_cli(["compare", first.run_id, second.run_id, "--log", "-o", "out"], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert [fields(here.get(side.run_id)) for side in (first, second)] == before


# --- a run that got its baseline later, elsewhere -----------------------------------------------


def test_a_copy_on_another_server_has_the_baseline_too(
    here: Store, empty_database: Path, tmp_path: Path
) -> None:
    records = tmp_path / "mlruns" / "records"
    pruned = send(here, write(records / "a", "pruned", new_record_id()))
    original = send(here, write(records / "b", "original", new_record_id()))
    arguments = ["refresh", pruned.run_id, "--baseline", original.run_id]
    assert run_cli(arguments, tmp_path).exit_code == 0
    there = fresh_store(empty_database, tmp_path / "there")
    done = run_cli(["sync", "--to", there.uri], tmp_path)
    assert done.exit_code == 0, done.stderr
    (copy,) = there.search(role="pruned")
    (baseline,) = there.search(role="original")
    assert copy.baseline_run_id == baseline.ref.run_id
    assert copy.metrics == here.get(pruned.run_id).metrics
    assert there.compare_link(baseline.ref, copy.ref) in copy.tags[NOTE]


def test_sync_sends_originals_before_what_was_pruned_from_them(here: Store, tmp_path: Path) -> None:
    records = tmp_path / "mlruns" / "records"
    write(records / "a", "pruned", new_record_id(), tags={WANTED_TAG: "SmolLM2-135M"})
    write(records / "b", "original", new_record_id())
    assert run_cli(["sync"], tmp_path).exit_code == 0
    (pruned,) = here.search(role="pruned")
    assert pruned.metrics["delta/ppl_ratio"] > 1
    assert "1 up to date" in run_cli(["refresh"], tmp_path).stdout


def test_a_bundle_carries_the_baseline_too(
    here: Store, empty_database: Path, tmp_path: Path
) -> None:
    original, pruned = unlinked(here, tmp_path)
    arguments = ["refresh", pruned.run_id, "--baseline", original.run_id]
    assert run_cli(arguments, tmp_path).exit_code == 0
    sides = [pruned.run_id, original.run_id]
    assert run_cli(["export", *sides, "--out", "bundle.tar"], tmp_path).exit_code == 0
    other = tmp_path / "other"
    there = fresh_store(empty_database, other / "mlruns")
    done = run_cli(["import", str(tmp_path / "bundle.tar")], other)
    assert done.exit_code == 0, done.stderr
    (copy,) = there.search(role="pruned")
    assert copy.metrics["delta/ppl_ratio"] == here.get(pruned.run_id).metrics["delta/ppl_ratio"]


def test_a_baseline_that_is_on_another_server_is_said_to_be_missing(
    here: Store, tmp_path: Path
) -> None:
    folder = write(tmp_path / "p", "pruned", new_record_id(), baseline_run_id="f" * 32)
    for name in (send(here, folder).run_id, str(folder)):
        done = run_cli(["compare", name, "-o", "out"], tmp_path)
        assert done.exit_code == 2
        assert "is not in" in done.stderr


def test_a_second_upload_that_breaks_off_leaves_a_run_that_can_be_read(
    mlflow_server: str, tmp_path: Path
) -> None:
    store = open_store(mlflow_server, root=tmp_path / "mlruns")
    folder = write(tmp_path / "pruned", "pruned", new_record_id())
    run = send(store, folder)
    labels = read_record(folder).labels.model_copy(update={"tags": {"again": "yes"}})
    write_record(folder, read_record(folder).model_copy(update={"labels": labels}))

    def refuse(method: str, path: str) -> tuple[int, bytes] | None:
        if path.endswith("set-tag"):
            return 403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'
        return None

    with proxy(mlflow_server, refuse) as (address, _):
        away = Tracker(tmp_path, open_store(address, root=tmp_path / "mlruns"), "refresh")
        assert publish(folder, away).run is None
    store.fetch(store.get(run.run_id), tmp_path / "between", everything=True)
    assert send(store, folder) == run
    assert store.get(run.run_id).is_complete
