"""``prunescope compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunescope.cli import options
from prunescope.errors import RunNotFoundError

if TYPE_CHECKING:
    from prunescope.records import EvalRecord
    from prunescope.tracking.store import Store, StoredRun

__all__ = ["compare_command"]


def compare_command(
    original: Annotated[
        str,
        typer.Argument(
            help="Run id or its beginning, runs:/ID, run name, latest:MODEL, or a record folder. "
            "Alone: a run that is compared with its baseline."
        ),
    ],
    pruned: Annotated[
        str | None, typer.Argument(help="The other run, named likewise.", show_default=False)
    ] = None,
    output_dir: options.OutputDir = Path("eval_results"),
    tracking_uri: options.TrackingUri = None,
) -> None:
    """Compare two finished runs: delta table, JSON and Markdown.

    Rows that are not comparable (other documents, window length, ...) say so in place of a number.

    Examples:

        prunescope compare latest:Llama-2-7b-hf latest:wanda-50

        prunescope compare 3f9c1e7a

        prunescope compare 3f9c1e7a runs:/88d0 --tracking-uri http://mlflow.lab:5000
    """
    from prunescope.cli.reports import check_output_dir, print_and_write
    from prunescope.compare.delta import compare_records

    check_output_dir(output_dir)
    finder = _Finder(tracking_uri)
    if pruned is None:
        second = finder.record(original)
        baseline = second.labels.baseline_run_id
        if baseline is None:
            raise RunNotFoundError(
                f"{original} has no baseline",
                hint="Name both runs: prunescope compare ORIGINAL PRUNED",
            )
        first = finder.record(baseline)
    else:
        first, second = finder.record(original), finder.record(pruned)
    print_and_write(compare_records(first, second), output_dir)


class _Finder:
    """Finds records by name; opens the tracking store when a name first needs it."""

    def __init__(self, tracking_uri: str | None) -> None:
        self._uri = tracking_uri
        self._store: Store | None = None

    def record(self, selector: str) -> EvalRecord:
        """The record of a run, or of a record folder on disk.

        Raises:
            PrunescopeError: there is none, or it has no results.
        """
        from prunescope.records import read_record
        from prunescope.tracking.spool import is_record_directory

        folder = Path(selector)
        if is_record_directory(folder):
            return _finished(read_record(folder), selector)
        from prunescope.tracking.query import resolve_run

        store = self.store()
        run: StoredRun = resolve_run(store, selector)
        return _finished(store.read_record(run), selector)

    def store(self) -> Store:
        if self._store is None:
            from prunescope.tracking.store import open_store

            self._store = open_store(self._uri, root=options.DEFAULT_ROOT)
        return self._store


def _finished(record: EvalRecord, selector: str) -> EvalRecord:
    if record.status != "finished":
        why = f": {record.error.message}" if record.error else ""
        raise RunNotFoundError(
            f"expected a finished run, but {selector} is {record.status}{why}",
            hint="Run the evaluation again",
        )
    return record
