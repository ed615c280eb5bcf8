"""``prunescope sync``."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunescope.cli import options
from prunescope.errors import (
    PrunescopeError,
    RecordError,
    RunNotFoundError,
    SettingError,
    TrackingError,
)

if TYPE_CHECKING:
    from prunescope.cli.console import Output
    from prunescope.cli.sending import LocalRecord, Sender
    from prunescope.records import RunRef

__all__ = ["sync_command"]

_SECONDS = 30.0


def sync_command(
    experiment: options.Experiment = None,
    tracking_uri: options.TrackingUri = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Copy every record of this machine to this other server or store, with the "
            "baselines that the tracking server has; what is there already stays.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Go on: send each record when its evaluation has ended."),
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", help="Seconds between two looks of --watch.")
    ] = _SECONDS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Send the records under mlruns/records that the tracking server does not have yet.

    A run that was sent in part is completed, never doubled. --watch ends at Ctrl+C or SIGTERM,
    after the record that it is sending.

    Examples:

        prunescope sync

        prunescope sync --tracking-uri http://mlflow.lab:5000 --dry-run

        prunescope sync --watch --interval 60

        prunescope sync --to http://mlflow.archive:5000 --experiment copies
    """
    if not interval > 0:
        raise SettingError(f"--interval takes seconds above 0, found {interval:g}")
    if watch and as_json:
        raise SettingError(
            "--watch tells of each record as it is sent, --json at the end", hint="Use --quiet"
        )
    from prunescope.cli.console import Output

    job = _Sync(experiment, tracking_uri, to, dry_run, Output(as_json, quiet))
    if watch:
        _watch(job, interval)
        return
    job.once(threading.Event())
    job.finish()


class _Sync:
    """Sends what waits, and tells of each record once."""

    def __init__(
        self,
        experiment: str | None,
        tracking_uri: str | None,
        to: str | None,
        dry_run: bool,
        output: Output,
    ) -> None:
        self._experiment = experiment
        self._uri = tracking_uri
        self._to = to
        self._dry_run = dry_run
        self._output = output
        self._runs: list[dict[str, Any]] = []
        self._told: set[str] = set()
        self._there: set[str] = set()
        self.sent = 0
        self.failed = 0

    def once(self, stop: threading.Event) -> None:
        """Send every record that waits, unless ``stop`` is set meanwhile.

        Raises:
            TrackingError: the server cannot be reached or refuses.
        """
        sender = self._open()
        self.failed = 0
        waiting = self._waiting(sender)
        for one in sender.arrange(waiting) if waiting else ():
            if stop.is_set():
                return
            try:
                self._send(sender, one)
            except (RecordError, RunNotFoundError) as problem:
                self._tell(one.directory.name, problem)

    def finish(self) -> None:
        """Say what it came to.

        Raises:
            TrackingError: some records were not sent.
        """
        if self._output.as_json:
            there, failed = len(self._there), self.failed
            document = {"sent": self._runs, "there_before": there, "not_sent": failed}
            self._output.show(list, document=lambda: document, essential=list)
        if self.failed:
            word = "record was" if self.failed == 1 else "records were"
            raise TrackingError(f"{self.failed} {word} not sent", hint="See the lines above")
        if not self.sent and not self._there:
            self._output.line("nothing to send: the server has every record")
        elif self._there:
            self._output.line(f"{len(self._there)} of this machine's records were there before")

    def _open(self) -> Sender:
        from prunescope.cli.sending import Sender
        from prunescope.tracking.store import open_store

        root = options.DEFAULT_ROOT
        if self._to is None:
            return Sender(root, open_store(self._uri, root=root), self._experiment)
        target = open_store(self._to, root=root)
        named = self._uri or os.environ.get("MLFLOW_TRACKING_URI")
        source = None
        if named or (root / "mlflow.db").is_file():
            with contextlib.suppress(TrackingError):  # records of this machine go all the same
                source = open_store(self._uri, root=root)
        return Sender(root, target, self._experiment, source)

    def _waiting(self, sender: Sender) -> list[LocalRecord]:
        from prunescope.cli.sending import ended_records

        copying = self._to is not None
        found = []
        for one in ended_records(sender.root, unless_on=None if copying else sender.store.uri):
            if isinstance(one, RecordError):
                self._tell("", one)
            elif one.record.record_id not in self._there:
                if copying and sender.run_of(one.record.record_id) is not None:
                    self._there.add(one.record.record_id)
                else:
                    found.append(one)
        return found

    def _send(self, sender: Sender, one: LocalRecord) -> None:
        self.sent += 1
        if self._dry_run:
            if str(one.directory) not in self._told:
                self._report(one, None, f"would send {one.directory}", str(one.directory))
            self._told.add(str(one.directory))
            return
        try:
            run = sender.send(one)
        except PrunescopeError:
            self.sent -= 1
            raise
        where = run.url or run.run_id
        self._report(one, run, f"sent {one.directory.name}  {where}", run.run_id)

    def _report(self, one: LocalRecord, run: RunRef | None, line: str, essential: str) -> None:
        """One record, in the form that was asked for; all of them at the end where that is JSON."""
        found = {"record_id": one.record.record_id, "directory": str(one.directory)}
        self._runs.append({**found, "run_id": run and run.run_id, "url": run.url if run else None})
        if self._output.quiet and not self._output.as_json:
            self._output.show(list, document=dict, essential=lambda: essential)
        self._output.line(line)

    def _tell(self, name: str, problem: PrunescopeError) -> None:
        self.failed += 1
        self.say(f"not sent: {name}: {problem}" if name else f"not sent: {problem}")

    def say(self, text: str) -> None:
        """A line on stderr, each text once."""
        from prunescope.cli.console import stderr

        if text not in self._told:
            self._told.add(text)
            stderr().print(text, soft_wrap=True, markup=False)

    def forget(self, text: str) -> None:
        """Let ``text`` be told again."""
        self._told.discard(text)


def _watch(job: _Sync, interval: float) -> None:
    from prunescope.cli.console import stderr

    away = ""
    with _stop_signals() as stop:
        while not stop.is_set():
            try:
                job.once(stop)
            except TrackingError as problem:
                away = f"{problem} Trying again every {interval:g} s."
                job.say(away)
            else:
                job.forget(away)
            stop.wait(interval)
    stderr().print(f"stopped; {job.sent} record{'s' if job.sent != 1 else ''} sent")


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal ends the process at once."""
    stop = threading.Event()
    kept = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(*_: object) -> None:
        stop.set()
        for name, handler in kept.items():
            signal.signal(name, handler)

    for name in kept:
        signal.signal(name, on_signal)
    try:
        yield stop
    finally:
        for name, handler in kept.items():
            signal.signal(name, handler)
