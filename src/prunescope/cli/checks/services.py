"""The hub or its mirror, the data folder, and the tracking server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.cli.checks.result import Check, Status

if TYPE_CHECKING:
    from prunescope.evaluate.data import DataFile, HubAnswer
    from prunescope.tracking.store import StoreDiagnosis

__all__ = ["check_data", "check_hub", "check_tracking"]

_MIRROR = "Set HF_ENDPOINT to a mirror, or use --data-dir and local models"
_CREDENTIALS = (
    "Ask for write access; credentials are MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)


def check_hub(answer: HubAnswer, *, needed: bool) -> tuple[Check, ...]:
    """Whether models and data can be downloaded.

    Args:
        answer: of :func:`~prunescope.evaluate.data.probe_hub`.
        needed: False where the data folder or earlier downloads make do; then it is no problem.
    """
    where = answer.endpoint
    bad: Status = "problem" if needed else "warning"
    if answer.state == "hub":
        return (Check("hub", "ok", f"{where} answers"),)
    if answer.state == "offline":
        text = "HF_HUB_OFFLINE is set: only what was downloaded before is used"
        if not needed:
            return (Check("hub", "ok", text),)
        advice = "Unset HF_HUB_OFFLINE to download, or make a data folder elsewhere and use it"
        return (Check("hub", "warning", text, f"{advice} with --data-dir"),)
    found = {
        "failing": f"{where} is failing ({answer.detail})",
        "something else": f"{where} answers ({answer.detail}), but not as a Hugging Face hub does",
        "unreachable": f"{where} cannot be reached ({answer.detail})",
    }[answer.state]
    if answer.state == "something else":
        advice = "Check HF_ENDPOINT and the proxy; a login page also looks like this"
    else:
        advice = _MIRROR
    return (Check("hub", bad, found, advice),)


def check_data(folder: Path | None) -> tuple[Check, ...]:
    """What a data folder has of the seven tasks and WikiText-2, after all its hashes were checked.

    Without a folder: what was downloaded before.

    Raises:
        DataError: it is none, or a file is missing or damaged.
    """
    from prunescope.evaluate.data import cached_rows, verify
    from prunescope.records import DEFAULT_TASKS

    wanted = (*DEFAULT_TASKS, "wikitext2")
    if folder is None:
        cached = cached_rows(wanted)
        if cached == wanted:
            text = "no --data-dir: all task rows and WikiText-2 were downloaded before"
            return (Check("data", "ok", text),)
        text = "no --data-dir: task rows and WikiText-2 come from the hub"
        before = f"; downloaded before: {', '.join(cached)}" if cached else ""
        return (Check("data", "skipped", text + before),)
    manifest = verify(folder)
    names = [f"{name} ({_rows(manifest.splits(name))})" for name in manifest.names]
    missing = [name for name in wanted if name not in manifest.names]
    found = f"{folder} is whole: {', '.join(names) or 'nothing'}"
    if not missing:
        return (Check("data", "ok", found),)
    return (
        Check("data", "warning", f"{found}; missing: {', '.join(missing)}", _pull(folder, missing)),
    )


def _rows(splits: Mapping[str, DataFile]) -> str:
    return f"{sum(file.rows for file in splits.values()):,} rows"


def _pull(folder: Path, missing: list[str]) -> str:
    tasks = [name for name in missing if name != "wikitext2"]
    parts = []
    if tasks:
        parts.append(f"Run: prunescope data pull {folder}")
    if "wikitext2" in missing:
        parts.append(
            "WikiText-2 comes with 'data pull' from the hub or with its option --wikitext; "
            "without it use --ppl-corpus boolq-passages, or --skip perplexity"
        )
    return ". ".join(parts)


def check_tracking(found: StoreDiagnosis) -> tuple[Check, ...]:
    """Whether runs can be stored.

    Args:
        found: of :func:`~prunescope.tracking.store.diagnose_store`.
    """
    if found.kind in ("file", "absent file"):
        return (_check_file(found),)
    said = f"MLflow {found.server_version}" if found.server_version else "its version is not said"
    checks = [
        Check("tracking", "ok", f"{found.shown} answers: {said}, here {found.client_version}")
    ]
    if _is_older(found.server_version, found.client_version):
        checks = [
            Check(
                "tracking",
                "warning",
                f"{found.shown} has MLflow {found.server_version}, older than the "
                f"{found.client_version} here",
                "If calls fail, update the server, or install its version of mlflow here",
            )
        ]
    return (*checks, _check_writing(found), *_check_artifacts(found))


def _check_file(found: StoreDiagnosis) -> Check:
    if found.refusal is not None:
        advice = "Run from a folder that you may write, or use --tracking-uri"
        return Check("tracking", "problem", f"{found.shown}: {found.refusal}", advice)
    if found.kind == "absent file":
        text = f"no store yet: the first run creates {found.shown}, whose folder can be written"
        return Check("tracking", "ok", text)
    how = "write access: a transaction was begun and rolled back"
    return Check("tracking", "ok", f"{found.shown}, MLflow {found.client_version}; {how}")


def _check_writing(found: StoreDiagnosis) -> Check:
    absent = "" if found.experiment_exists else "; the experiment prunescope is not there yet"
    if found.refusal is None:
        text = "a tag and a small artifact were written and removed again"
        return Check("tracking write", "ok", f"{text} in experiment {found.tried_in}{absent}")
    if found.experiment_exists:
        return Check("tracking write", "problem", found.refusal, _CREDENTIALS)
    text = f"writing into {found.tried_in} is refused{absent}, so that only a run will tell"
    return Check("tracking write", "warning", f"{text}: {found.refusal}", _CREDENTIALS)


def _check_artifacts(found: StoreDiagnosis) -> tuple[Check, ...]:
    """A server that serves no artifacts hands out a folder, which each client takes for its own."""
    place = found.artifacts or ""
    if found.kind != "server" or ("://" in place and not place.startswith("file:")):
        return ()
    if not place or place.startswith("mlflow-artifacts:"):
        return ()
    return (
        Check(
            "tracking artifacts",
            "warning",
            f"the server has every client write artifacts into {place} on the client's own disk",
            "Start it with --serve-artifacts (the default) and --artifacts-destination, unless "
            "that folder is shared by all machines",
        ),
    )


def _is_older(server: str | None, client: str) -> bool:
    """By major and minor version; False where a version is not known."""
    from packaging.version import InvalidVersion, Version

    try:
        return server is not None and Version(server).release[:2] < Version(client).release[:2]
    except InvalidVersion:
        return False
