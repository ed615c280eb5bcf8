"""Record directories on this machine."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from support.records import failed_record, original_record, pruned_record

from prunescope.cli.sending import LocalRecord, ended_records
from prunescope.errors import OutputError
from prunescope.records import EvalRecord, RunRef, read_record, write_file, write_record
from prunescope.tracking.links import redact_uri
from prunescope.tracking.spool import (
    find_interrupted,
    find_record,
    forget_uploads,
    is_record_directory,
    list_records,
    mark_uploaded,
    new_record_directory,
    uploaded_to,
)

SERVER = "http://mlflow.lab:5000"


def ref(uri: str = SERVER, run_id: str = "1" * 32) -> RunRef:
    return RunRef(run_id=run_id, experiment_id="1", run_name="n", tracking_uri=uri)


def pending(root: Path, uri: str) -> list[Path]:
    """What waits for a server; a store gives its address without credentials."""
    found = ended_records(root, unless_on=redact_uri(uri))
    return [one.directory for one in found if isinstance(one, LocalRecord)]


def spooled(root: Path, record: EvalRecord) -> Path:
    directory = new_record_directory(root, record)
    write_record(directory, record)
    return directory


def named(name: str) -> EvalRecord:
    record = original_record()
    return record.model_copy(update={"model": record.model.model_copy(update={"name": name})})


def test_a_directory_is_named_by_date_model_and_short_id(tmp_path: Path) -> None:
    directory = new_record_directory(tmp_path, pruned_record())
    assert directory == tmp_path / "records" / "20260314-SmolLM2-135M-2of4-bbbbbbbb"
    assert directory.is_dir()


def test_a_directory_is_never_given_twice(tmp_path: Path) -> None:
    first = new_record_directory(tmp_path, pruned_record())
    assert new_record_directory(tmp_path, pruned_record()) != first


@pytest.mark.parametrize("name", ["../../etc", "a/b\\c", "模型" * 200, "...", "a b\n", "-rf"])
def test_no_model_name_leaves_the_folder_or_overflows_it(tmp_path: Path, name: str) -> None:
    directory = new_record_directory(tmp_path, named(name))
    assert directory.parent == tmp_path / "records"
    assert len(directory.name.encode()) < 200


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file is in the way")
    with pytest.raises(OutputError, match="cannot create"):
        new_record_directory(tmp_path, original_record())


def test_a_record_is_found_by_its_key_and_the_newest_wins(tmp_path: Path) -> None:
    record = original_record()
    assert record.record_key is not None
    later = record.model_copy(
        update={
            "record_id": "0" * 32,  # sorts first by name
            "finished_at": (record.finished_at or record.started_at) + timedelta(hours=1),
        }
    )
    spooled(tmp_path, record)
    newest = spooled(tmp_path, later)
    spooled(tmp_path, pruned_record())
    assert find_record(tmp_path, record.record_key) == newest
    assert find_record(tmp_path, "f" * 64) is None
    assert find_record(tmp_path / "nowhere", record.record_key) is None


def test_only_a_finished_record_answers_to_its_key(tmp_path: Path) -> None:
    record = original_record().model_copy(update={"status": "running", "finished_at": None})
    directory = spooled(tmp_path, record)
    assert record.record_key is not None
    assert find_record(tmp_path, record.record_key) is None
    assert find_interrupted(tmp_path, record.record_key) == directory


def test_a_key_that_stands_elsewhere_in_a_record_is_not_its_key(tmp_path: Path) -> None:
    spooled(tmp_path, original_record())
    weights = original_record().model.weights_sha256
    assert weights is not None
    assert find_record(tmp_path, weights) is None


def test_damaged_records_are_in_nobodys_way(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "cut": b'{"schema_ver', "binary": b"\xff\xfe\x00"}.items():
        write_file(tmp_path / "records" / name / "record.json", content)
    (tmp_path / "records" / "no-record").mkdir()
    good = spooled(tmp_path, original_record())
    assert find_record(tmp_path, original_record().record_key or "") == good
    assert pending(tmp_path, SERVER) == [good]
    assert len(list_records(tmp_path)) == 4


def test_what_is_pending_depends_on_the_server(tmp_path: Path) -> None:
    one, other = spooled(tmp_path, original_record()), spooled(tmp_path, failed_record())
    running = pruned_record().model_copy(update={"status": "running", "finished_at": None})
    spooled(tmp_path, running)
    assert set(pending(tmp_path, SERVER)) == {one, other}
    mark_uploaded(one, ref())
    assert pending(tmp_path, SERVER) == [other]
    assert pending(tmp_path, "http://ada:secret@mlflow.lab:5000/") == [other]
    assert set(pending(tmp_path, "http://other:5000")) == {one, other}


def test_uploads_are_remembered_one_a_server(tmp_path: Path) -> None:
    directory = spooled(tmp_path, original_record())
    assert uploaded_to(directory) == []
    mark_uploaded(directory, ref())
    mark_uploaded(directory, ref("http://other:5000"))
    mark_uploaded(directory, ref(run_id="2" * 32))
    assert uploaded_to(directory) == [ref("http://other:5000"), ref(run_id="2" * 32)]
    forget_uploads(directory)
    forget_uploads(directory)
    assert uploaded_to(directory) == []


def test_remembering_an_upload_leaves_the_record_alone(tmp_path: Path) -> None:
    directory = spooled(tmp_path, original_record())
    before = read_record(directory)
    mark_uploaded(directory, ref())
    assert read_record(directory) == before


def test_a_damaged_memory_of_uploads_means_send_again(tmp_path: Path) -> None:
    directory = spooled(tmp_path, original_record())
    write_file(directory / ".uploads.json", '[{"run_id": 1')
    assert uploaded_to(directory) == []
    assert pending(tmp_path, SERVER) == [directory]


def test_a_record_directory_is_one_with_a_record(tmp_path: Path) -> None:
    assert is_record_directory(spooled(tmp_path, original_record()))
    assert not is_record_directory(tmp_path)
    assert not is_record_directory(tmp_path / "nowhere")
    assert not is_record_directory(Path("a\0b"))
    assert not is_record_directory(Path("x" * 5000))
