"""Bundles: what goes in comes out, and a stranger's bundle can do nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.records import write_example

from prunescope.errors import PrunescopeError, RecordError
from prunescope.records import read_record
from prunescope.tracking.history.bundle import (
    BASELINE_TAG,
    BundleEntry,
    BundleFile,
    BundleManifest,
    ExportedRun,
    read_manifest,
    relinked,
    unpack,
    write_bundle,
)

RECORD = "a" * 32


def exported(folder: Path, which: str = "original", baseline: str | None = None) -> ExportedRun:
    record = write_example(folder / which, which)
    return ExportedRun(folder / which, record, record.model.name, "exp", baseline)


def forge(
    path: Path, files: Mapping[str, bytes], change: Callable[[Any], Any] = lambda m: m
) -> Path:
    """A bundle of one record whose manifest fits its files, before ``change``."""
    manifest = {
        "format": "prunescope-bundle",
        "version": 1,
        "records": [
            {
                "record_id": RECORD,
                "files": [
                    {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                    for name, data in files.items()
                ],
            }
        ],
    }
    text = json.dumps(change(manifest)).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in {"manifest.json": text, **files}.items():
            member = tarfile.TarInfo(name if data is text else f"records/{RECORD}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def unpack_only(path: Path, into: Path) -> None:
    (entry,) = read_manifest(path).records
    unpack(path, entry, into)


def good_record(tmp_path: Path) -> bytes:
    write_example(tmp_path / "good", "original")
    return (tmp_path / "good" / "record.json").read_bytes()


def test_a_record_comes_out_as_it_went_in(tmp_path: Path) -> None:
    run = exported(tmp_path)
    (run.directory / "report.html").write_text("<script>")
    path = tmp_path / "bundle.tar"
    assert write_bundle(path, [run, run]) == read_manifest(path)
    (entry,) = read_manifest(path).records
    record = unpack(path, entry, tmp_path / "out")
    assert record == read_record(run.directory)
    came = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file()}
    went = {p.relative_to(run.directory) for p in run.directory.rglob("*") if p.is_file()}
    assert came == went - {Path("report.html")}
    for name in came:
        assert (tmp_path / "out" / name).read_bytes() == (run.directory / name).read_bytes()


def test_equal_records_give_equal_bundles(tmp_path: Path) -> None:
    run = exported(tmp_path)
    write_bundle(tmp_path / "1.tar", [run])
    write_bundle(tmp_path / "2.tar", [run])
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_baselines_come_first_and_a_circle_ends() -> None:
    def entry(record_id: str, baseline: str | None) -> BundleEntry:
        return BundleEntry(record_id=record_id, baseline_record_id=baseline, files=())

    def order(*entries: BundleEntry) -> list[str]:
        whole = BundleManifest(format="prunescope-bundle", version=1, records=entries)
        return [one.record_id for one in whole.in_order()]

    assert order(entry("c", "b"), entry("b", "a"), entry("a", "elsewhere")) == ["a", "b", "c"]
    assert sorted(order(entry("a", "b"), entry("b", "a"))) == ["a", "b"]


@pytest.mark.parametrize("known", [True, False])
def test_a_baseline_is_linked_anew_or_said_to_be_missing(tmp_path: Path, known: bool) -> None:
    record = write_example(tmp_path, "pruned")
    labels = record.labels.model_copy(update={"baseline_run_id": "there"})
    record = record.model_copy(update={"labels": labels})
    found = relinked(tmp_path, record, RECORD, "here" if known else None)
    assert read_record(tmp_path) == found
    assert found.labels.baseline_run_id == ("here" if known else None)
    assert found.labels.tags[BASELINE_TAG] == RECORD
    assert any("not on this server" in note for note in found.provenance.notes) != known


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.json",
        "/etc/evil",
        "samples/../../evil.parquet",
        "report.html",
        "plots/a.svg",
        "tokens\\evil.npz",
    ],
)
def test_a_file_elsewhere_or_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    path = forge(tmp_path / "b.tar", {"record.json": good_record(tmp_path), name: b"x"})
    with pytest.raises(RecordError, match="has a file"):
        unpack_only(path, tmp_path / "out")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_devices_and_folders_are_refused(tmp_path: Path, kind: bytes) -> None:
    entry = BundleEntry(
        record_id=RECORD,
        files=(BundleFile(path="record.json", size=0, sha256=hashlib.sha256(b"").hexdigest()),),
    )
    manifest = BundleManifest(format="prunescope-bundle", version=1, records=(entry,))
    text = manifest.model_dump_json().encode()
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
        member = tarfile.TarInfo(f"records/{RECORD}/record.json")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(RecordError, match="no plain file"):
        unpack_only(tmp_path / "b.tar", tmp_path / "out")
    assert not (tmp_path / "out" / "record.json").exists()


def _newer(raw: bytes) -> bytes:
    return json.dumps(json.loads(raw) | {"schema_version": 99}).encode()


def _pickled(tmp_path: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, logprob=np.array([{"a": 1}], dtype=object))
    return buffer.getvalue()


def test_a_newer_another_or_damaged_record_is_told(tmp_path: Path) -> None:
    good = good_record(tmp_path)
    other = json.dumps(json.loads(good) | {"record_id": "f" * 32}).encode()
    for files, why in (
        ({"record.json": _newer(good)}, "schema 99"),
        ({"record.json": other}, "calls itself"),
        ({"record.json": good[:100]}, "not JSON"),
        ({"sparsity.json": b"{}"}, "no readable record"),
        ({"record.json": good, "tokens/x.npz": _pickled(tmp_path)}, "pickled"),
        ({"record.json": good, "tokens/x.npz": b"PK"}, "damaged"),
        ({"record.json": good, "samples/x.parquet": b"PAR1"}, "damaged"),
        ({"record.json": good, "sparsity.json": b"{"}, "no readable sparsity"),
    ):
        path = forge(tmp_path / "b.tar", files)
        with pytest.raises(RecordError, match=why):
            unpack_only(path, tmp_path / f"out-{why}-{len(files)}-{sorted(files)[-1][:3]}")


def test_sizes_and_hashes_must_agree(tmp_path: Path) -> None:
    def change(**fields: Any) -> Callable[[Any], Any]:
        def apply(manifest: Any) -> Any:
            manifest["records"][0]["files"][0] |= fields
            return manifest

        return apply

    good = {"record.json": good_record(tmp_path)}
    for number, (fields, why) in enumerate(
        [({"size": 5}, "plain file of 5"), ({"sha256": "0" * 64}, "was changed")]
    ):
        path = forge(tmp_path / "b.tar", good, change(**fields))
        with pytest.raises(RecordError, match=why):
            unpack_only(path, tmp_path / f"out{number}")


def test_a_manifest_of_a_newer_version_or_another_kind_is_told(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    for change, why in (
        (lambda m: m | {"version": 2}, "version 2"),
        (lambda m: m | {"format": "zip"}, "no bundle"),
        (lambda m: m | {"records": 3}, "damaged manifest"),
        (lambda m: m | {"records": [{"record_id": "../x", "files": []}]}, "names a record"),
        (lambda m: [m], "no bundle"),
    ):
        with pytest.raises(RecordError, match=why):
            read_manifest(forge(path, {}, change))
    path.write_bytes(b"no tar at all")
    with pytest.raises(RecordError, match="no whole bundle"):
        read_manifest(path)
    import gzip

    path.write_bytes(gzip.compress(forge(tmp_path / "c.tar", {}).read_bytes()))
    with pytest.raises(RecordError, match="no whole bundle"):
        read_manifest(path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder / "b.tar", [exported(folder)])
    return (folder / "b.tar").read_bytes()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_only_our_errors_come_out_of_a_damaged_bundle(
    tmp_path_factory: pytest.TempPathFactory, bundle: bytes, data: st.DataObject
) -> None:
    content = bytearray(bundle)
    headers = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 1023))
        content[min(at, len(content) - 1)] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "b.tar"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]) or bytes(content))
    try:
        for entry in read_manifest(path).in_order():
            unpack(path, entry, folder / "out")
    except PrunescopeError:
        pass
    assert {p.name for p in folder.iterdir()} <= {"b.tar", "out"}
