"""``prunescope import`` and ``prunescope export``."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunescope.cli import options
from prunescope.errors import OutputError, PrunescopeError, RecordError

if TYPE_CHECKING:
    from prunescope.cli.console import Output
    from prunescope.cli.finder import RunFinder
    from prunescope.cli.publishing import Tracker
    from prunescope.records import EvalRecord, RunRef
    from prunescope.tracking.history.bundle import BundleEntry, ExportedRun
    from prunescope.tracking.store import Store

__all__ = ["export_command", "import_command"]

_SHOWN = 20


def import_command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Result files of lm-eval, wanda or the older script, bundles, or folders of them.",
            show_default=False,
        ),
    ],
    experiment: options.Experiment = None,
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Turn older results, or a bundle of another server's runs, into runs.

    The same content again changes nothing. Files that are something else are named and skipped.

    Examples:

        prunescope import eval_results/comparison_20250314_092653.json

        prunescope import ~/old-results --experiment history

        prunescope import bundle.tar --tracking-uri http://mlflow.lab:5000
    """
    from prunescope.cli.console import Output
    from prunescope.tracking.history.importing import find_files, kind_of

    files = list(find_files(paths))
    output = Output(as_json, quiet)
    importer = _Importer(_tracker(tracking_uri, experiment), output)
    for path in files:
        try:
            if kind_of(path) == "bundle":
                importer.bundle(path)
            else:
                importer.results(path)
        except RecordError as problem:
            importer.skip(problem)
    for reason in importer.skipped[:_SHOWN]:
        output.warn(f"skipped: {_line(reason)}", "")
    if len(importer.skipped) > _SHOWN:
        output.warn(f"... and {len(importer.skipped) - _SHOWN} more files skipped", "")
    if not importer.usable:
        raise RecordError(
            f"nothing to import: none of {len(files)} files holds results",
            hint="Name results of lm-eval, wanda or the older script, or a bundle",
        )
    output.show(
        list,
        document=lambda: {
            "runs": importer.runs,
            "skipped": [_line(reason) for reason in importer.skipped],
        },
        essential=lambda: [run["run_id"] for run in importer.runs if run["run_id"]],
    )


def export_command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Runs, named as for compare.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle to write.")],
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write runs into one file, to be imported where there is no way to this server.

    Reports and pictures are not carried: they are made again on import.

    Examples:

        prunescope export latest:Llama-2-7b-hf latest:wanda-50 --out bundle.tar

        prunescope export 3f9c1e7a --out bundle.tar --tracking-uri http://mlflow.lab:5000
    """
    from prunescope.cli.console import Output
    from prunescope.cli.finder import RunFinder
    from prunescope.tracking.history.bundle import write_bundle

    with RunFinder(tracking_uri) as finder:
        manifest = write_bundle(out, [_exported(finder, selector) for selector in runs])
    count = len(manifest.records)
    size = out.stat().st_size
    Output(as_json, quiet).show(
        lambda: f"{count} run{'s' if count != 1 else ''} in {out}, {size:,} bytes",
        document=lambda: {"path": str(out), "bytes": size, "runs": list(runs)},
        essential=lambda: str(out),
    )


def _tracker(uri: str | None, experiment: str | None) -> Tracker:
    from prunescope.cli.publishing import Tracker
    from prunescope.tracking.store import open_store

    return Tracker(options.DEFAULT_ROOT, open_store(uri, root=options.DEFAULT_ROOT), experiment)


def _line(problem: PrunescopeError) -> str:
    return " ".join(problem.message.split())


def _exported(finder: RunFinder, selector: str) -> ExportedRun:
    from prunescope.tracking.history.bundle import BASELINE_TAG, ExportedRun

    found = finder.find(selector)
    original = finder.baseline_run(found)
    baseline = original.record_id if original else found.record.labels.tags.get(BASELINE_TAG)
    run = found.run
    return ExportedRun(
        directory=found.directory,
        record=found.record,
        run_name=run.run_name if run else "",
        experiment=finder.store.experiment_name(run.experiment_id) if run else None,
        baseline_record_id=baseline,
    )


@dataclass
class _Importer:
    """Sends what was read, and remembers what became of it."""

    tracker: Tracker
    output: Output
    runs: list[dict[str, Any]] = field(default_factory=list)
    """What went in or was there before; ``run_id`` is null for the latter."""
    skipped: list[PrunescopeError] = field(default_factory=list)
    usable: bool = False
    """Whether a run went in or was there before."""

    @property
    def store(self) -> Store:
        """Where runs go."""
        assert self.tracker.store is not None
        return self.tracker.store

    def skip(self, problem: PrunescopeError) -> None:
        """Go on without what ``problem`` is about."""
        self.skipped.append(problem)

    def results(self, path: Path) -> None:
        """Import a result file.

        Raises:
            RecordError: it is something else, or damaged.
            PrunescopeError: the server refuses.
        """
        from prunescope.tracking.history.importing import read_results, write_imported

        for run in read_results(path).runs:
            if self._known(run.record):
                continue
            baseline = self._run_of(run.baseline_record_id)
            self._send(write_imported(run, baseline, self._directory_for))

    def bundle(self, path: Path) -> None:
        """Import a bundle; a record that cannot be read is named, and the others go in.

        Raises:
            RecordError: it is no bundle.
            PrunescopeError: the server refuses.
        """
        from prunescope.tracking.history.bundle import read_manifest, unpack

        for entry in read_manifest(path).in_order():
            if self._run_of(entry.record_id) is not None:
                self._say(entry.run_name or entry.record_id[:8], None)
                continue
            with _scratch(options.DEFAULT_ROOT) as folder:
                try:
                    record = unpack(path, entry, folder)
                except RecordError as problem:
                    self.skip(problem)
                    continue
                self._take(entry, record, folder)

    def _take(self, entry: BundleEntry, record: EvalRecord, folder: Path) -> None:
        from prunescope.evaluate.sparsity import write_pictures
        from prunescope.records import read_tensors
        from prunescope.tracking.history.bundle import relinked

        baseline = self._run_of(entry.baseline_record_id)
        record = relinked(folder, record, entry.baseline_record_id, baseline)
        if (folder / "sparsity.json").is_file():
            write_pictures(read_tensors(folder), folder / "plots")

        directory = self._directory_for(record)
        shutil.copytree(folder, directory, dirs_exist_ok=True)
        self._send(directory, entry.experiment)

    def _known(self, record: EvalRecord) -> bool:
        known = self._run_of(record.record_id) is not None
        if known:
            self._say(record.model.name, None)
        return known

    def _run_of(self, record_id: str | None) -> str | None:
        found = self.store.search(record_id=record_id, status=None, limit=1) if record_id else []
        whole = [run for run in found if run.status in ("FINISHED", "FAILED")]
        return whole[0].ref.run_id if whole else None

    def _directory_for(self, record: EvalRecord) -> Path:
        """Where a former import left the record, which was for another server; else a new one."""
        from prunescope.records import read_record
        from prunescope.tracking.spool import list_records, new_record_directory

        for directory in list_records(self.tracker.root):
            with contextlib.suppress(RecordError):
                likely = record.record_id[:8] in directory.name
                if likely and read_record(directory).record_id == record.record_id:
                    return directory
        return new_record_directory(self.tracker.root, record)

    def _send(self, directory: Path, experiment: str | None = None) -> None:
        from prunescope.cli.publishing import publish

        named = self.tracker.experiment or experiment
        outcome = publish(directory, replace(self.tracker, experiment=named))
        if outcome.problem is not None:
            raise outcome.problem
        self._say(outcome.record.model.name, outcome.run)

    def _say(self, name: str, run: RunRef | None) -> None:
        self.usable = True
        where = "was there before" if run is None else f"imported as {run.url or run.run_id}"
        self.output.line(f"{name}: {where}")
        found = {"run_id": run.run_id, "url": run.url} if run else {"run_id": None, "url": None}
        self.runs.append({"name": name, **found})


@contextlib.contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A folder on the disk that records are on, for as long as the context lasts."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".import-", dir=root)
    except OSError as error:
        raise OutputError(f"cannot write into {root}: {error.strerror or error}") from error
    with folder as path:
        yield Path(path)
