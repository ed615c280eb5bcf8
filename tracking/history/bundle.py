"""Records in one tar file, carried from one tracking server to another.

A bundle is an uncompressed tar: ``manifest.json`` first, then one folder a record,
``records/<record id>/...``. The manifest names every file with its size and sha256. Reports and
pictures stay behind: they are drawn again where the records arrive, so that nobody has to trust a
stranger's HTML.

A bundle may come from a stranger: only plain files that the manifest names are taken, under the
names that record directories have; links, devices and sparse files never are; sizes and hashes
must agree, and arrays are looked at without pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunescope.errors import OutputError, RecordError
from prunescope.records import EvalRecord, read_record, read_tensors, write_record

__all__ = [
    "BASELINE_TAG",
    "BundleEntry",
    "BundleFile",
    "BundleManifest",
    "ExportedRun",
    "read_manifest",
    "relinked",
    "unpack",
    "write_bundle",
]

BASELINE_TAG = "prunescope.baseline_record_id"
"""Tag of a run from a bundle: its baseline's record, which has another run id on each server."""

BUNDLE_VERSION = 1

_FILES = re.compile(r"record\.json|sparsity\.json|samples/[^/\\]+\.parquet|tokens/[^/\\]+\.npz")
_RECORD_ID = re.compile(r"[0-9a-f]{32}")
_MANIFEST = "manifest.json"
_MAX_MANIFEST = 32 * 2**20
_CHUNK = 2**20
_BROKEN_TAR = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    RecursionError,
    TypeError,
)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Strict):
    """A file of a record."""

    path: str
    """Inside the record's folder, with forward slashes."""
    size: int = Field(ge=0)
    """Bytes."""
    sha256: str


class BundleEntry(_Strict):
    """A record of a bundle."""

    record_id: str
    run_name: str = ""
    experiment: str | None = None
    """Name of the experiment that the run was in."""
    baseline_record_id: str | None = None
    files: tuple[BundleFile, ...]


class BundleManifest(_Strict):
    """What a bundle holds."""

    format: str
    version: int
    records: tuple[BundleEntry, ...]

    def in_order(self) -> list[BundleEntry]:
        """The records, each behind its baseline where the bundle has it."""
        by_id = {entry.record_id: entry for entry in self.records}
        done: dict[str, BundleEntry] = {}
        for entry in by_id.values():
            chain: dict[str, BundleEntry] = {}
            step: BundleEntry | None = entry
            while step is not None and step.record_id not in chain | done:
                chain[step.record_id] = step
                step = by_id.get(step.baseline_record_id or "")
            done |= dict(reversed(chain.items()))
        return list(done.values())


@dataclass(frozen=True)
class ExportedRun:
    """A run to put into a bundle."""

    directory: Path
    """Its record directory."""
    record: EvalRecord
    run_name: str
    experiment: str | None
    baseline_record_id: str | None


# --- writing ------------------------------------------------------------------------------------


def write_bundle(path: Path, runs: Sequence[ExportedRun]) -> BundleManifest:
    """Write runs into a new bundle, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    unique = {run.record.record_id: run for run in runs}
    sources = {record_id: _sources(run.directory) for record_id, run in unique.items()}
    manifest = BundleManifest(
        format="prunescope-bundle",
        version=BUNDLE_VERSION,
        records=tuple(_entry(run, sources[record_id]) for record_id, run in unique.items()),
    )
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT) as tar:
            text = manifest.model_dump_json(indent=1).encode()
            tar.addfile(_member(_MANIFEST, len(text)), io.BytesIO(text))
            for entry in manifest.records:
                for file in entry.files:
                    with open(sources[entry.record_id][file.path], "rb") as content:
                        name = f"records/{entry.record_id}/{file.path}"
                        tar.addfile(_member(name, file.size), content)
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            hint="Check the folder's permissions and the free disk space",
        ) from error
    return manifest


def _sources(directory: Path) -> dict[str, Path]:
    found = {
        file.relative_to(directory).as_posix(): file
        for file in sorted(directory.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }
    return {name: file for name, file in found.items() if _FILES.fullmatch(name)}


def _entry(run: ExportedRun, sources: Mapping[str, Path]) -> BundleEntry:
    files = []
    for name, source in sources.items():
        with open(source, "rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        files.append(BundleFile(path=name, size=source.stat().st_size, sha256=sha256))
    return BundleEntry(
        record_id=run.record.record_id,
        run_name=run.run_name,
        experiment=run.experiment,
        baseline_record_id=run.baseline_record_id,
        files=tuple(files),
    )


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A plain file without owner and time, so that equal records give equal bundles."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


# --- reading ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        # "r:" refuses compressed files: nothing can unpack to more than it is.
        with tarfile.open(path, "r:") as tar:
            yield tar
    except RecordError:
        raise
    except _BROKEN_TAR as error:
        raise RecordError(
            f"{path} is no whole bundle: {type(error).__name__}: {error}",
            hint="Make it with prunescope export, and copy it again",
        ) from error


def read_manifest(path: Path) -> BundleManifest:
    """What a bundle says that it holds.

    Raises:
        RecordError: the file is no bundle, is damaged, or a newer prunescope wrote it.
    """
    with _tar(path) as tar:
        first = tar.next()
        if first is None or first.name != _MANIFEST or not _is_plain(first):
            raise RecordError(f"{path} is no bundle: its first file is not {_MANIFEST}")
        if first.size > _MAX_MANIFEST:
            raise RecordError(f"{path} is no bundle: its manifest has {first.size:,} bytes")
        stream = tar.extractfile(first)
        raw = json.loads(stream.read() if stream else b"")
    return _checked(path, raw)


def _checked(path: Path, raw: Any) -> BundleManifest:
    if not isinstance(raw, dict) or raw.get("format") != "prunescope-bundle":
        raise RecordError(f"{path} is no bundle of prunescope's")
    version = raw.get("version")
    if isinstance(version, int) and version > BUNDLE_VERSION:
        raise RecordError(
            f"{path} is a bundle of version {version}, this prunescope reads {BUNDLE_VERSION}",
            hint="Install a newer prunescope",
        )
    try:
        manifest = BundleManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path} has a damaged manifest: {place}: {first['msg']}") from error
    for entry in manifest.records:
        if not _RECORD_ID.fullmatch(entry.record_id):
            raise RecordError(f"{path} names a record {entry.record_id[:80]!r}")
    return manifest


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def unpack(path: Path, entry: BundleEntry, into: Path) -> EvalRecord:
    """Write the files of one record of a bundle into the new folder ``into``, and look at them.

    Returns:
        The record.

    Raises:
        RecordError: a file is missing, is not what the manifest says, or is damaged; or a newer
            prunescope wrote the record.
        OutputError: the folder cannot be written.
    """
    wanted = {file.path: file for file in entry.files}
    for name in wanted:
        if not _FILES.fullmatch(name):
            raise RecordError(f"record {entry.record_id[:8]} of {path} has a file {name[:80]!r}")
    prefix = f"records/{entry.record_id}/"
    with _tar(path) as tar:
        for member in tar:
            name = member.name.removeprefix(prefix)
            if name == member.name or name not in wanted:
                continue
            _extract(tar, member, wanted.pop(name), into / name)
    if wanted:
        raise RecordError(
            f"record {entry.record_id[:8]} of {path} lacks {', '.join(sorted(wanted))[:200]}"
        )
    return _looked_at(into, entry)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, file: BundleFile, target: Path) -> None:
    if not _is_plain(member) or member.size != file.size:
        raise RecordError(f"{member.name} is no plain file of {file.size:,} bytes in the bundle")
    source = tar.extractfile(member)
    digest = hashlib.sha256()
    if source is not None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            written = open(target, "xb")  # noqa: SIM115  # closed below
        except OSError as error:
            raise _unwritable(target, error) from error
        with written:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                _write(written, chunk, target)
    if digest.hexdigest() != file.sha256:
        raise RecordError(f"{member.name} was changed: its sha256 is not the manifest's")


def _write(file: IO[bytes], chunk: bytes, target: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {target}: {error.strerror or error}",
        hint="Check the folder's permissions and the free disk space",
    )


def _looked_at(directory: Path, entry: BundleEntry) -> EvalRecord:
    record = read_record(directory)
    if record.record_id != entry.record_id:
        raise RecordError(f"record {entry.record_id[:8]} calls itself {record.record_id[:80]!r}")
    if record.status == "running":
        raise RecordError(f"record {entry.record_id[:8]} did not end")
    if (directory / "sparsity.json").is_file():
        read_tensors(directory)
    for file in entry.files:
        if file.path.endswith(".npz"):
            _check_arrays(directory / file.path)
        elif file.path.endswith(".parquet"):
            _check_table(directory / file.path)
    return record


def _check_arrays(path: Path) -> None:
    """Look at the arrays' headers: no Python objects, and no more data than there is."""
    from numpy.lib import format as npy

    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as array:
                    version = npy.read_magic(array)
                    read = (
                        npy.read_array_header_1_0
                        if version == (1, 0)
                        else npy.read_array_header_2_0
                    )
                    if read(array)[2].hasobject:
                        raise ValueError(f"{name} holds pickled objects")
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
        raise RecordError(f"the arrays at {path.name} are damaged: {error}") from error
    except NotImplementedError as error:
        raise RecordError(f"the arrays at {path.name} are packed oddly: {error}") from error


def _check_table(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise RecordError(f"the documents at {path.name} are damaged: {first}") from error


def relinked(
    directory: Path, record: EvalRecord, baseline_record_id: str | None, run_id: str | None
) -> EvalRecord:
    """Point an unpacked record at its baseline's run on this server, and write it.

    Args:
        directory: where it was unpacked.
        record: as it was unpacked; its baseline's run id is another server's.
        baseline_record_id: the baseline's record.
        run_id: the baseline's run here; None where this server does not have it.

    Raises:
        OutputError: the folder cannot be written.
    """
    labels, provenance = record.labels, record.provenance
    tags = dict(labels.tags)
    if baseline_record_id is not None:
        tags[BASELINE_TAG] = baseline_record_id
    if labels.baseline_run_id is not None and run_id is None:
        named = (baseline_record_id or labels.baseline_run_id)[:64]
        note = f"its baseline {named} is not on this server"
        provenance = provenance.model_copy(update={"notes": (*provenance.notes, note)})
    labels = labels.model_copy(update={"baseline_run_id": run_id, "tags": tags})
    record = record.model_copy(update={"labels": labels, "provenance": provenance})
    return write_record(directory, record)
