"""The files of a run: which belong to it, and whether they have arrived as they were sent.

An upload is believed only once it was read back. A server tells no checksums, and a login page
that answers a PUT looks like success. So the SHA-256 of each file goes into ``manifest.json``,
which is uploaded last, and the manifest's own into a tag of the run, set when everything that was
read back has the right one. A run that carries the tag is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunescope.errors import RecordError, TrackingError
from prunescope.records import EvalRecord, samples_path
from prunescope.tracking.samples import TABLE_PATH, samples_table
from prunescope.tracking.store.patience import patient

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

__all__ = [
    "ARTIFACT_PATHS",
    "MANIFEST_PATH",
    "File",
    "Manifest",
    "ManifestFile",
    "artifact_files",
    "artifacts_of",
    "check_against_manifest",
    "download_files",
    "refuse_pages",
    "send_artifacts",
    "send_record",
    "sha256_of",
]

ARTIFACT_PATHS = re.compile(
    r"record\.json|sparsity\.json|report\.(md|html)"
    r"|plots/[^/]+\.(png|svg)|samples/[^/]+\.parquet|tokens/[^/]+\.npz|tables/[^/]+\.json"
)
"""What of a record directory belongs to the run, and all that is ever taken out of one."""
MANIFEST_PATH = "manifest.json"

_EVIDENCE = re.compile(r"record\.json|sparsity\.json|samples/.+|tokens/.+")
"""What numbers come from. Reports, pictures and tables may be made anew later."""


_AT_ONCE = 4
"""How many files are read at the same time."""


@dataclass(frozen=True)
class File:
    """A local file and its path among the run's artifacts."""

    local: Path
    path: PurePosixPath

    @property
    def size(self) -> int:
        """Bytes of the local file."""
        return self.local.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Of the local file's content, in hexadecimal digits."""
        return sha256_of(self.local)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestFile(_Strict):
    """A file of a run."""

    path: str
    """Among the artifacts, with forward slashes."""
    size: int = Field(ge=0)
    """Bytes."""
    sha256: str


class Manifest(_Strict):
    """What a run's artifacts are."""

    format: Literal["prunescope-artifacts"] = "prunescope-artifacts"
    version: Literal[1] = 1
    files: tuple[ManifestFile, ...]

    @classmethod
    def of(cls, files: Iterable[File]) -> Manifest:
        """The manifest of local files, in the order of their paths."""
        return cls(
            files=tuple(
                ManifestFile(path=str(file.path), size=file.size, sha256=file.sha256)
                for file in sorted(files, key=lambda file: str(file.path))
            )
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- what belongs to a run ----------------------------------------------------------------------


@contextlib.contextmanager
def artifact_files(directory: Path, record: EvalRecord) -> Iterator[list[File]]:
    """The files of a record directory that belong to the run, and the table made from them.

    Raises:
        RecordError: a file of samples is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="prunescope-") as scratch:
        found = [
            File(path, PurePosixPath(path.relative_to(directory).as_posix()))
            for path in sorted(directory.rglob("*"))
            if path.is_file() and not path.is_symlink()
        ]
        files = [file for file in found if ARTIFACT_PATHS.fullmatch(str(file.path))]
        samples = {
            task: path for task in record.tasks if (path := samples_path(directory, task)).is_file()
        }
        if samples and not any(str(file.path) == TABLE_PATH for file in files):
            table = Path(scratch) / PurePosixPath(TABLE_PATH).name
            table.write_text(_table(directory, samples), encoding="utf-8")
            files.append(File(table, PurePosixPath(TABLE_PATH)))
        yield files


def _table(directory: Path, samples: Mapping[str, Path]) -> str:
    try:
        return samples_table(samples)
    except (OSError, ValueError) as error:
        raise RecordError(
            f"the samples of {directory} are damaged: {error}", hint="Evaluate again with --force"
        ) from error


def artifacts_of(run: Run, tracking_uri: str) -> ArtifactRepository:
    """Where a run's artifacts lie.

    MlflowClient keeps these by run id alone, and asks for the run again on each call: a second
    address of the same server would use the first one's.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return patient(get_artifact_repository(run.info.artifact_uri, tracking_uri=tracking_uri))


# --- sending ------------------------------------------------------------------------------------


def send_record(
    store: ArtifactRepository,
    files: list[File],
    *,
    resume: bool,
    verified: str | None,
    disown: Callable[[], object],
) -> str:
    """Store a record's files and their manifest, and read back what was not verified before.

    Args:
        store: the run's artifacts.
        files: from :func:`artifact_files`.
        resume: whether some may be there already; those that are whole are left alone.
        verified: the run's :data:`~prunescope.tracking.runs.MANIFEST_TAG`, None where it has none.
            Where it is the manifest of these very files, sizes are enough.
        disown: takes that tag away; called before anything changes that it vouches for.

    Returns:
        SHA-256 of the manifest, for the tag.

    Raises:
        TrackingError: some are not there, or not whole, after all.
    """
    text = Manifest.of(files).model_dump_json(indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if verified is not None and digest != verified:
        disown()
    with tempfile.TemporaryDirectory(prefix="prunescope-") as scratch:
        local = Path(scratch) / MANIFEST_PATH
        local.write_text(text, encoding="utf-8")
        everything = [*files, File(local, PurePosixPath(MANIFEST_PATH))]
        send_artifacts(store, everything, resume=resume, verified=digest == verified)
    return digest


def send_artifacts(
    store: ArtifactRepository, files: list[File], *, resume: bool = False, verified: bool = False
) -> None:
    """Store ``files`` in their order as artifacts of a run, and read them back.

    Args:
        store: the run's artifacts.
        files: what to store.
        resume: whether some may be there already; those that are whole are left alone.
        verified: whether what is there was read back before, so that sizes are enough.

    Raises:
        TrackingError: some are not there, or not whole, after all.
    """
    missing = files
    if resume:
        missing = _missing(store, files)
        if not verified:
            missing += _changed(store, [file for file in files if file not in missing])
    for file in [file for file in files if file in missing]:
        folder = str(file.path.parent) if file.path.parent.name else None
        store.log_artifact(str(file.local), folder)  # type: ignore[no-untyped-call]
    if missing:
        sent = missing
        missing = _missing(store, sent)
        missing += _changed(store, [file for file in sent if file not in missing])
    if missing:
        names = ", ".join(str(file.path) for file in missing[:3])
        raise TrackingError(
            f"{len(missing)} of {len(files)} artifacts did not arrive whole: {names}",
            hint="Check the server's artifact store, and what stands before it (a login page "
            "swallows uploads); the record on disk is complete",
        )


def _missing(store: ArtifactRepository, files: list[File]) -> list[File]:
    """The files that are not there, or not of their size."""
    sizes: dict[str, int | None] = {}
    for folder in dict.fromkeys(file.path.parent for file in files):
        listed = store.list_artifacts(str(folder) if folder.name else None)
        sizes.update({entry.path: entry.file_size for entry in listed if not entry.is_dir})
    # A store that tells no sizes (None) is believed until the file is read back.
    return [
        file
        for file in files
        if str(file.path) not in sizes or sizes[str(file.path)] not in (None, file.size)
    ]


def _changed(store: ArtifactRepository, files: list[File]) -> list[File]:
    """The files whose content, read back, is not what was sent."""
    with tempfile.TemporaryDirectory(prefix="prunescope-") as scratch:
        download_files(store, [str(file.path) for file in files], Path(scratch))
        return [file for file in files if not _same(Path(scratch) / file.path, file)]


def _same(back: Path, file: File) -> bool:
    return back.is_file() and sha256_of(back) == file.sha256


# --- reading ------------------------------------------------------------------------------------


def download_files(store: ArtifactRepository, paths: Iterable[str], into: Path) -> None:
    """Write artifacts under the same paths into the folder ``into``, several at once.

    MLflow's own ``download_artifacts`` asks of each path whether it is a folder, and tells of a
    failure without its cause.

    Args:
        store: a run's artifacts.
        paths: of files, checked by whoever calls: they decide what is written.
        into: a folder.
    """

    def download(path: str) -> None:
        local = into / path
        local.parent.mkdir(parents=True, exist_ok=True)
        store._download_file(path, str(local))  # type: ignore[no-untyped-call]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = [pool.submit(download, path) for path in paths]
        try:
            for one in waiting:
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def refuse_pages(directory: Path, paths: Iterable[str]) -> None:
    """See that no downloaded file is a page that something before the server answers with.

    Args:
        directory: holds the files.
        paths: of the files, below ``directory``.

    Raises:
        TrackingError: one is.
    """
    for path in paths:
        with open(directory / path, "rb") as file:
            start = file.read(64).lstrip().lower()
        if start.startswith((b"<!doctype html", b"<html")) and not path.endswith(".html"):
            raise TrackingError(
                f"expected the run's {path}, found a web page",
                hint="A login page in front of the server looks like this; the run is not damaged",
            )


def check_against_manifest(
    directory: Path, paths: Sequence[str], manifest: Path, expected: str
) -> None:
    """See that downloaded files are what was sent, those of them that numbers come from.

    Args:
        directory: holds the files.
        paths: of the files, as in the manifest.
        manifest: the run's :data:`MANIFEST_PATH`.
        expected: its SHA-256, the run's :data:`~prunescope.tracking.runs.MANIFEST_TAG`.

    Raises:
        RecordError: a file is not what was sent, or the manifest is not.
        TrackingError: something else than the server answered.
    """
    refuse_pages(directory, paths)
    refuse_pages(manifest.parent, [manifest.name])
    hint = "Delete the run, then send its record again: prunescope sync --to URI"
    if sha256_of(manifest) != expected:
        raise RecordError(f"the run's {MANIFEST_PATH} is not the one that was sent", hint=hint)
    try:
        known = Manifest.model_validate_json(manifest.read_bytes())
    except ValidationError as error:
        raise RecordError(f"the run's {MANIFEST_PATH} is too new or damaged", hint=hint) from error
    hashes = {file.path: file.sha256 for file in known.files}
    for path in paths:
        if _EVIDENCE.fullmatch(path) and sha256_of(directory / path) != hashes.get(path):
            raise RecordError(f"the run's {path} is not the one that was sent", hint=hint)
