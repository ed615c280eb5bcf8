"""Bringing runs up to date whose baseline arrived after them: note, differences and reports."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prunescope.cli.publishing import Baseline, raise_alarms
from prunescope.errors import PrunescopeError, SettingError
from prunescope.records import EvalRecord, RunRef, read_record

if TYPE_CHECKING:
    from prunescope.compare.delta import Comparison
    from prunescope.tracking.store import Store, StoredRun

__all__ = ["Refreshed", "Refresher", "may_take_baseline", "refresh_compared", "refresh_runs"]

_NOTE = "mlflow.note.content"
_BASELINE = "prunescope.baseline_run_id"
_ROLE = "prunescope.role"
_ALARMS = "prunescope.alarms"


@dataclass(frozen=True)
class Refreshed:
    """What became of one run."""

    run: RunRef
    status: Literal["updated", "up to date", "no baseline", "failed"]
    baseline: RunRef | None = None
    """What it is compared with."""
    changed: tuple[str, ...] = ()
    """What was written, or would be: ``baseline``, ``note``, names of metrics, of tags and of
    reports."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Its ``delta/...``, as they are now."""
    problem: PrunescopeError | None = None
    """Why it failed."""


def refresh_runs(
    *runs: str,
    baseline: str | None = None,
    experiment: str | None = None,
    dry_run: bool = False,
    tracking_uri: str | None = None,
    root: str | Path = "mlruns",
) -> tuple[Refreshed, ...]:
    """Compare runs with baselines that arrived after them: ``prunescope refresh``.

        from prunescope import refresh_runs

        for found in refresh_runs():
            print(found.run.run_name, found.status, found.metrics)

    Args:
        runs: as for :func:`compare_runs`; by default every finished run of a pruned model.
        baseline: the original of ``runs``, named likewise, where they name none themselves.
        experiment: only runs of this MLflow experiment.
        dry_run: find out what would be written, and write nothing.
        tracking_uri: MLflow server or store; ``MLFLOW_TRACKING_URI``, else the embedded store.
        root: folder of the embedded store, and of the records that tell which run was sent where.

    Returns:
        One entry a run. A run that cannot be compared is no error: its ``problem`` says why.

    Raises:
        PrunescopeError: no run answers to a name, or the server refuses.
    """
    from prunescope.tracking.store import open_store

    store = open_store(tracking_uri, root=Path(root))
    with Refresher.of(store, Path(root), dry_run=dry_run) as refresher:
        return tuple(refresher.refresh_all(runs, baseline=baseline, experiment=experiment))


def may_take_baseline(run: StoredRun, original: StoredRun) -> bool:
    """Whether a run without a baseline may be given this one because somebody compared the two.

    An original has no baseline, and a pruned model is none: a comparison of two pruned models
    says which is better, not what pruning cost.
    """
    return (
        run.ref.run_id != original.ref.run_id
        and run.role != "original"
        and original.role != "pruned"
    )


def refresh_compared(
    store: Store, root: Path, original: RunRef, pruned: RunRef
) -> Refreshed | None:
    """What the logged comparison of two runs does to the pruned one.

    It is refreshed where the other is its baseline, or becomes it because there is none.

    Returns:
        None where the run is left as it is: it has another baseline, or may not take this one.

    Raises:
        PrunescopeError: a run has no record, or the store refuses.
    """
    from prunescope.tracking.baselines import Baselines, names_baseline

    run, other = store.get(pruned.run_id), store.get(original.run_id)
    own = Baselines(store, root).of_run(run)
    is_own = own is not None and own.ref.run_id == original.run_id
    if not is_own and (own or names_baseline(run.tags) or not may_take_baseline(run, other)):
        return None
    with Refresher.of(store, root) as refresher:
        return refresher.refresh(run, other)


@dataclass
class Refresher:
    """Brings runs of one store up to date; a baseline of several is fetched once."""

    store: Store
    root: Path
    folder: Path
    """For what is fetched."""
    dry_run: bool = False
    _fetched: str = ""
    """Id of the run that lies in ``folder/baseline``."""

    @classmethod
    @contextmanager
    def of(cls, store: Store, root: Path, *, dry_run: bool = False) -> Iterator[Refresher]:
        """A refresher that works in a folder of its own, for as long as the context lasts."""
        with tempfile.TemporaryDirectory(prefix="prunescope-") as folder:
            yield cls(store, root, Path(folder), dry_run)

    def refresh_all(
        self,
        selectors: Iterable[str] = (),
        *,
        baseline: str | None = None,
        experiment: str | None = None,
        say: Callable[[str], object] = str,
    ) -> Iterator[Refreshed]:
        """Refresh the runs that are named, or every pruned one, and tell of each.

        Args:
            selectors: names of runs.
            baseline: the original of those.
            experiment: only runs of this experiment.
            say: hears how many runs there are, before the first.

        Raises:
            PrunescopeError: a name stands for no run, or the store refuses.
        """
        from prunescope.tracking.baselines import Baselines
        from prunescope.tracking.query import resolve_run

        names = list(selectors)
        if baseline is not None and not names:
            raise SettingError(
                "--baseline is for runs that are named", hint="Name them: refresh RUN --baseline B"
            )
        original = resolve_run(self.store, baseline) if baseline is not None else None
        runs = [resolve_run(self.store, name) for name in names]
        if not names:
            runs = self.store.search(role="pruned", experiment=experiment)
        elif experiment is not None:
            there = self.store.experiment_name
            runs = [run for run in runs if there(run.ref.experiment_id) == experiment]
        known = Baselines(self.store, self.root)
        pairs = [(run, known.of_run(run)) for run in runs]
        # One baseline after the other.
        pairs.sort(key=lambda pair: pair[1].ref.run_id if pair[1] else "")
        say(f"{len(pairs)} run{'s' if len(pairs) != 1 else ''} to look at")
        for run, own in pairs:
            yield self._refresh(run, own, original)

    def _refresh(self, run: StoredRun, own: StoredRun | None, named: StoredRun | None) -> Refreshed:
        try:
            if named is not None:
                _check_named(run, own, named)
            original = own or named
            if original is None:
                return Refreshed(run.ref, "no baseline")
            return self.refresh(run, original)
        except PrunescopeError as problem:
            other = own or named
            return Refreshed(run.ref, "failed", other.ref if other else None, problem=problem)

    def refresh(self, run: StoredRun, original: StoredRun) -> Refreshed:
        """Compare a run with its original, and write what the run does not say so yet.

        Raises:
            RecordError: either has no record, or one that did not finish.
            TrackingError: the store refuses.
        """
        directory = self.store.fetch(run, self._empty("run"), everything=True)
        if self._fetched != original.ref.run_id:
            self.store.fetch(original, self._empty("baseline"), everything=True)
            self._fetched = original.ref.run_id
        baseline = Baseline(original.ref, self.folder / "baseline")
        comparison = _compare(baseline, directory, run.ref)
        metrics = _metrics(comparison)
        new_metrics = {k: v for k, v in metrics.items() if run.metrics.get(k) != v}
        wanted = self._tags(run, original, comparison, read_record(directory))
        new_tags = {k: v for k, v in wanted.items() if run.tags.get(k) != v}
        reports = self._reports(run, directory, comparison)
        changed = (*map(_spoken, new_tags), *new_metrics, *(path.name for path in reports))
        if not self.dry_run:
            self._write(run, directory, reports, new_metrics, new_tags)
        kept = {k: v for k, v in run.metrics.items() if k.startswith("delta/")}
        return Refreshed(
            run.ref,
            "updated" if changed else "up to date",
            original.ref,
            changed,
            kept | metrics,
        )

    def _write(
        self,
        run: StoredRun,
        directory: Path,
        reports: list[Path],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> None:
        """The reports come first: what was cut off behind them is found again."""
        from prunescope.tracking.store.reports import replace_reports

        if reports:
            replace_reports(self.store, run, directory, reports)
        if metrics or tags:
            self.store.annotate(run.ref.run_id, metrics=metrics, tags=tags)

    def _empty(self, name: str) -> Path:
        import shutil

        if name == "baseline":
            self._fetched = ""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    def _tags(
        self, run: StoredRun, original: StoredRun, comparison: Comparison, sent: EvalRecord
    ) -> dict[str, str]:
        from prunescope.compare.report import run_note
        from prunescope.tracking.codec import run_name
        from prunescope.tracking.notes import cut_note, merge_note

        note = run_note(
            comparison,
            baseline_url=self.store.run_link(original.ref),
            compare_url=self.store.compare_link(original.ref, run.ref),
        )
        merged = merge_note(run.tags.get(_NOTE, ""), cut_note(note), run_name(sent))
        alarms = ", ".join(alarm.code for alarm in comparison.pruned.alarms)
        return {
            _BASELINE: original.ref.run_id,
            _ROLE: run.role or "pruned",
            **({_ALARMS: alarms} if alarms else {}),
            _NOTE: merged,
        }

    def _reports(self, run: StoredRun, directory: Path, comparison: Comparison) -> list[Path]:
        """The run's reports with the comparison, where those that it has are without this one.

        ``report.md`` is the last, as it tells whether they are.
        """
        from prunescope.compare.markdown import is_comparison_report
        from prunescope.compare.report import html_report, markdown_report
        from prunescope.records import write_file
        from prunescope.tracking.store.reports import lacks_tag

        old = directory / "report.md"
        if not old.is_file():
            return []
        known, text = comparison.original_run, old.read_text("utf-8")
        compared = is_comparison_report(text) and known is not None and known.run_id in text
        if compared and not lacks_tag(self.store, run):
            return []
        paths = [self.folder / "report.html", self.folder / "report.md"]
        for path, report in zip(paths, (html_report, markdown_report), strict=True):
            write_file(path, report(comparison))
        return paths


def _check_named(run: StoredRun, own: StoredRun | None, named: StoredRun) -> None:
    """A run's baseline is filled in, never exchanged: its record names the one it has.

    Raises:
        SettingError: it has another one, or the two cannot be original and pruned.
    """
    if own is not None and own.ref.run_id != named.ref.run_id:
        raise SettingError(
            f"its baseline is {own.ref.run_name} ({own.ref.run_id[:8]}), not "
            f"{named.ref.run_name} ({named.ref.run_id[:8]})",
            hint="For another comparison: prunescope compare ORIGINAL PRUNED --log",
        )
    if own is None and not may_take_baseline(run, named):
        raise SettingError(
            "an original is compared with no baseline"
            if run.role == "original"
            else f"{named.ref.run_name} ({named.ref.run_id[:8]}) is a pruned model's run or the "
            "run itself, not an original's",
            hint="To compare the two all the same: prunescope compare A B --log",
        )


def _compare(baseline: Baseline, directory: Path, run: RunRef) -> Comparison:
    """The comparison that the run would have got, had its baseline been there.

    Its time is when both were: whoever compares the two writes the same reports.
    """
    from prunescope.compare.analysis import compare_directories

    first, second = read_record(baseline.directory), read_record(directory)
    ended = max(record.finished_at or record.started_at for record in (first, second))
    as_sent = (directory / "record.json").read_bytes()
    if _may_be_unchanged(first, second):
        raise_alarms(directory, baseline)
    try:
        return compare_directories(
            baseline.directory,
            directory,
            now=ended.astimezone(),
            original_run=baseline.run,
            pruned_run=run,
        )
    finally:
        (directory / "record.json").write_bytes(as_sent)


def _may_be_unchanged(first: EvalRecord, second: EvalRecord) -> bool:
    """Whether the models could be the same. To look closer loads torch, which takes seconds."""
    if first.model.weights_sha256 and first.model.weights_sha256 == second.model.weights_sha256:
        return True
    shared = first.tasks.keys() & second.tasks.keys()
    return bool(shared) and all(
        first.tasks[name].metrics == second.tasks[name].metrics for name in shared
    )


def _metrics(comparison: Comparison) -> dict[str, float]:
    from prunescope.compare.delta import delta_metrics

    return {name: round(value, 4) for name, value in delta_metrics(comparison).items()}


def _spoken(tag: str) -> str:
    return {_NOTE: "note", _BASELINE: "baseline", _ROLE: "role", _ALARMS: "alarms"}[tag]
