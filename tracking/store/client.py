"""Runs of one tracking store: send a record, search, read one back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import OutputError, RecordError, RunNotFoundError, TrackingError
from prunescope.records import EvalRecord, RunRef, read_record, utc_now
from prunescope.tracking import links, spool, view
from prunescope.tracking.codec import encode, headline
from prunescope.tracking.notes import compose_note, cut_note, merge_note
from prunescope.tracking.runs import StoredRun, filter_string
from prunescope.tracking.store import artifacts as files_of
from prunescope.tracking.store import upload as sending
from prunescope.tracking.store.comparisons import send_comparison
from prunescope.tracking.store.connect import Location, connect, locate, tracking_errors
from prunescope.tracking.store.download import download_directory, download_record
from prunescope.tracking.store.finding import fail_orphans, find_runs, get_run, stored_run
from prunescope.tracking.store.logged_model import log_model, wants_model
from prunescope.tracking.store.preset import preset_experiment
from prunescope.tracking.store.search import (
    all_experiments,
    get_or_create_experiment,
    search_runs,
)

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.tracking import MlflowClient

__all__ = ["Store", "open_store"]

_NOTE = "mlflow.note.content"


def open_store(uri: str | None, *, root: Path) -> Store:
    """Open a tracking store that has answered.

    Args:
        uri: an address; by default MLFLOW_TRACKING_URI, else the embedded store, an SQLite file
            and a folder of artifacts under ``root``, created where there is none.
        root: folder of the embedded store, normally ``./mlruns``.

    Raises:
        TrackingError: it cannot be reached, refuses, or is something else; within seconds.
        OutputError: the embedded store's folder cannot be written.
    """
    location = locate(uri, root)
    return Store(location, connect(location))


class Store:
    """A tracking store, and nothing of MLflow's global state."""

    def __init__(self, location: Location, client: MlflowClient) -> None:
        self._location = location
        self._client = client
        self._names: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """Address of the store, without credentials."""
        return self._location.shown

    @property
    def is_embedded(self) -> bool:
        """Whether the store is an SQLite file, without a server."""
        return self._location.database is not None

    @property
    def connection(self) -> tuple[MlflowClient, str]:
        """MLflow's client of this store, and its address: for the modules beside this one."""
        return self._client, self._location.uri

    @property
    def artifact_location(self) -> str | None:
        """Folder of an SQLite store's artifacts; None where a server decides."""
        folder = self._location.artifacts
        return None if folder is None else str(folder)

    # --- sending --------------------------------------------------------------------------------

    def upload(
        self,
        directory: Path,
        *,
        experiment: str,
        note: str | None = None,
        extra_metrics: Mapping[str, float] | None = None,
        prepare: Callable[[RunRef], Mapping[str, str]] | None = None,
    ) -> RunRef:
        """Send a record directory as one run.

        A run with the same record id, which an interrupted attempt has left, is completed; a
        complete one is left as it is.

        Args:
            directory: a record directory whose evaluation has ended.
            experiment: name of the experiment, created where there is none.
            note: the run's note in Markdown; a line of its figures by default. Links to the
                baseline follow its first line.
            extra_metrics: for example ``delta/mean_points``.
            prepare: hears of the run before anything is sent, may still write files into
                ``directory``, and returns more tags for the run.

        Raises:
            RecordError: the record is damaged or its evaluation still runs.
            TrackingError: the store refuses, or an artifact did not arrive.
        """
        record = read_record(directory)
        if record.status == "running":
            raise RecordError(
                f"the evaluation in {directory} has not ended", hint="Wait for it, or resume it"
            )
        with sending.record_lock(directory), tracking_errors(self._location.uri):
            target = self._experiment(experiment)
            existing = self._runs_of(record.record_id)
            ref = self._send(directory, record, target, existing, note, extra_metrics, prepare)
            if wants_model(record):
                log_model(self._client, ref, record)
        if ref.experiment_id == target.experiment_id:
            # The preset view is a nicety, so it is no error where the store refuses it.
            with contextlib.suppress(TrackingError), tracking_errors(self._location.uri):
                preset_experiment(self._client, target, ref.run_id, record)
        with contextlib.suppress(OutputError):
            spool.mark_uploaded(directory, ref)
        return ref

    def _send(
        self,
        directory: Path,
        record: EvalRecord,
        target: Experiment,
        existing: list[Run],
        note: str | None,
        extra_metrics: Mapping[str, float] | None,
        prepare: Callable[[RunRef], Mapping[str, str]] | None,
    ) -> RunRef:
        fields = encode(record, extra_metrics)
        run = sending.start_run(self._client, fields, target.experiment_id, existing)
        run_id = str(run.info.run_id)
        known = next((one for one in existing if one.info.run_id == run_id), None)
        experiment_id = str(known.info.experiment_id if known else target.experiment_id)
        tags = {_NOTE: self._note(record, run_id, experiment_id, note)}
        if known is not None:
            tags = {**fields.tags, **(tags if note or _is_unfinished(known) else {})}
        if prepare is not None:
            tags |= prepare(self._ref(run_id, experiment_id, fields.name))
        if known is not None and _NOTE in tags and not _is_unfinished(known):
            tags[_NOTE] = merge_note(known.data.tags.get(_NOTE, ""), tags[_NOTE], fields.name)
        before = known.data.tags if known is not None else {}
        sending.log_fields(self._client, run_id, fields, tags, before)
        sending.send_files(
            self._client, self._location.uri, run, directory, record, resume=known is not None
        )
        self._client.set_terminated(run_id, fields.status, fields.end_ms)
        if known is None:
            # A retried create_run may have made a second, empty run.
            sending.start_run(self._client, fields, experiment_id, self._runs_of(record.record_id))
        return self._ref(run_id, experiment_id, fields.name)

    def _note(self, record: EvalRecord, run_id: str, experiment_id: str, note: str | None) -> str:
        baseline = record.labels.baseline_run_id
        found = {}
        if baseline is not None:
            with contextlib.suppress(RunNotFoundError):
                pair = [self.get(baseline).ref.experiment_id, experiment_id]
                found["baseline"] = links.run_path(pair[0], baseline)
                found["side by side"] = links.compare_path([baseline, run_id], pair)
        return compose_note(note or "", found, first_line=headline(record))

    def _runs_of(self, record_id: str) -> list[Run]:
        wanted = filter_string(tags={"prunescope.record_id": record_id})
        return search_runs(self._client, wanted, self._experiment_ids(), None)

    def _experiment(self, name: str) -> Experiment:
        folder = self._location.artifacts
        return get_or_create_experiment(self._client, name, folder.as_uri() if folder else None)

    def log_comparison(
        self,
        original: RunRef,
        pruned: RunRef,
        files: Sequence[Path],
        *,
        metrics: Mapping[str, float],
        headline: str,
    ) -> RunRef:
        """Store a comparison as a run of its own, in the pruned run's experiment.

        Args:
            original: one side's run, in this store.
            pruned: the other side's.
            files: the reports, one a format.
            metrics: differences, such as ``delta/mean_points``.
            headline: the comparison in one line of plain text.

        Raises:
            TrackingError: the store refuses, has not both runs, or a file did not arrive.
        """
        with tracking_errors(self._location.uri):
            run_id, name = send_comparison(
                self._client, self._location.uri, (original, pruned), files, metrics, headline
            )
        return self._ref(run_id, pruned.experiment_id, name)

    # --- finding --------------------------------------------------------------------------------

    def search(
        self,
        *,
        role: str | None = None,
        model: str | None = None,
        experiment: str | None = None,
        method: str | None = None,
        record_key: str | None = None,
        record_id: str | None = None,
        status: str | None = "FINISHED",
        name: str | None = None,
        id_prefix: str | None = None,
        limit: int | None = None,
        only_prunescope: bool = True,
    ) -> list[StoredRun]:
        """Runs that answer to everything that is given, newest first, in all experiments.

        The store filters; nothing else is fetched.

        Raises:
            TrackingError: the store refuses.
        """
        wanted = filter_string(
            tags={
                "prunescope.role": role,
                "prunescope.model": model,
                "prunescope.method": method,
                "prunescope.record_key": record_key,
                "prunescope.record_id": record_id,
            },
            status=status,
            name=name,
            id_prefix=id_prefix,
            only_prunescope=only_prunescope,
        )
        with tracking_errors(self._location.uri):
            ids = self._experiment_ids()
            if experiment is not None:
                ids = [one for one in ids if self._names.get(one) == experiment]
            found = find_runs(self._client, self._location.uri, wanted, ids, limit)
            return [self._stored(run) for run in found]

    def _experiment_ids(self) -> list[str]:
        found = all_experiments(self._client)
        self._names.update({str(one.experiment_id): one.name for one in found})
        return [str(one.experiment_id) for one in found]

    def experiment_name(self, experiment_id: str) -> str:
        """The name of an experiment; its id where it cannot be found.

        Raises:
            TrackingError: the store refuses.
        """
        if experiment_id not in self._names:
            with tracking_errors(self._location.uri):
                self._experiment_ids()
        return self._names.get(experiment_id, experiment_id)

    def get(self, run_id: str) -> StoredRun:
        """The run with this id.

        Raises:
            RunNotFoundError: there is none.
            TrackingError: the store refuses.
        """
        with tracking_errors(self._location.uri):
            found = get_run(self._client, run_id)
        if found is None:
            hint = "List runs: prunescope runs"
            raise RunNotFoundError(f"no run {run_id} in {self.uri}", hint=hint)
        return self._stored(found)

    def _stored(self, run: Run) -> StoredRun:
        info = run.info
        name = info.run_name or run.data.tags.get("mlflow.runName") or info.run_id
        return stored_run(run, self._ref(info.run_id, info.experiment_id, name))

    def _ref(self, run_id: str, experiment_id: str, name: str) -> RunRef:
        return RunRef(
            run_id=run_id,
            experiment_id=str(experiment_id),
            run_name=name,
            tracking_uri=self.uri,
            url=self.run_url(run_id, str(experiment_id)),
        )

    # --- reading --------------------------------------------------------------------------------

    def fetch(self, run: StoredRun, into: Path, *, everything: bool = False) -> Path:
        """Write the run's record into the folder ``into`` as a record directory.

        Args:
            run: from :meth:`get` or :meth:`search`.
            into: created where there is none.
            everything: samples, tokens, reports and plots too, not only the record and its
                sparsity.

        Returns:
            ``into``.

        Raises:
            RecordError: the run has no record, because something else logged it.
            TrackingError: the store refuses.
        """
        with tracking_errors(self._location.uri):
            download_directory(self._artifacts(run), run, into, everything=everything)
        return into

    def read_record(self, run: StoredRun) -> EvalRecord:
        """The record of a run; its sparsity comes without tensors.

        Raises:
            RecordError: the run has none, or it is damaged or too new.
            TrackingError: the store refuses.
        """
        with tracking_errors(self._location.uri):
            return download_record(self._artifacts(run), run)

    def _artifacts(self, run: StoredRun) -> ArtifactRepository:
        return files_of.artifacts_of(self._client.get_run(run.ref.run_id), self._location.uri)

    # --- changing -------------------------------------------------------------------------------

    def annotate(
        self,
        run_id: str,
        *,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Set tags of a run and log finite figures that came to be known later, in one request.

        Raises:
            TrackingError: the store refuses.
        """
        from mlflow.entities import Metric, RunTag

        now = round(1000 * utc_now().timestamp())
        points = [Metric(k, v, now, 0) for k, v in (metrics or {}).items() if isfinite(v)]
        written = {k: cut_note(v) if k == _NOTE else v for k, v in (tags or {}).items()}
        with tracking_errors(self._location.uri):
            named = [RunTag(k, v) for k, v in written.items()]
            self._client.log_batch(run_id, metrics=points, tags=named)

    def recover_orphans(self) -> list[RunRef]:
        """Mark as FAILED the runs that a process of this machine left RUNNING when it was killed.

        Sending such a run's record again completes it.

        Raises:
            TrackingError: the store refuses.
        """
        with tracking_errors(self._location.uri):
            orphans = fail_orphans(self._client, self._experiment_ids())
        return [self._stored(run).ref for run in orphans]

    # --- addresses ------------------------------------------------------------------------------

    def _url(self, path: str) -> str | None:
        base = links.ui_base(self._location.uri)
        return None if base is None else f"{base}/{path}"

    def run_url(self, run_id: str, experiment_id: str) -> str | None:
        """Address of a run's page; None for a store without a server."""
        return self._url(links.run_path(experiment_id, run_id))

    def compare_url(self, runs: Iterable[RunRef]) -> str | None:
        """Address of the page with these runs side by side; None without a server."""
        return self._url(_compare_path(runs))

    def experiment_url(self, experiment_id: str) -> str | None:
        """Address of an experiment's table in the preset view; None without a server."""
        return self._url(links.experiment_path(experiment_id, view=view.VIEW_ID))

    def run_link(self, run: RunRef) -> str:
        """A link to a run's page for notes: it works under whatever address a reader uses."""
        return links.run_path(run.experiment_id, run.run_id)

    def compare_link(self, *runs: RunRef) -> str:
        """A link to the page with these runs side by side, for notes."""
        return _compare_path(runs)

    def experiment_links(self, base: str) -> list[tuple[str, str]]:
        """Name and address of each experiment with the preset view, under the server ``base``.

        Raises:
            TrackingError: the store refuses.
        """
        with tracking_errors(self._location.uri):
            found = all_experiments(self._client)
        known = [one for one in found if view.VIEW_TAG in one.tags]
        paths = [links.experiment_path(one.experiment_id, view=view.VIEW_ID) for one in known]
        return [(a.name, f"{base.rstrip('/')}/{b}") for a, b in zip(known, paths, strict=True)]


def _is_unfinished(run: Run) -> bool:
    """Whether an attempt that failed or was cut off has left the run: its note is out of date."""
    return run.info.status != "FINISHED" or _NOTE not in run.data.tags


def _compare_path(runs: Iterable[RunRef]) -> str:
    refs = list(runs)
    return links.compare_path([r.run_id for r in refs], [r.experiment_id for r in refs])
