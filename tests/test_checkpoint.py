"""Streaming tensors from checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.models import save_tiny_model, tiny_model

from prunescope.errors import ModelError
from prunescope.evaluate.checkpoint import iter_model, iter_tensors, tensor_names


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 5, generator=generator),
        "a.weight": torch.randn(7, generator=generator).to(torch.bfloat16),
        "c.weight": torch.randn(2, 2, generator=generator).to(torch.float16),
        "odd": torch.ones(3, dtype=torch.uint8),
        "d.weight": torch.randn(4, generator=generator).to(torch.float64),
    }


def _write(directory: Path, kind: str) -> list[Path]:
    """Two shards whose names interleave."""
    tensors = list(_tensors().items())
    paths = []
    for index, part in enumerate((tensors[::2], tensors[1::2])):
        path = directory / f"part-{index}.{kind}"
        if kind == "safetensors":
            save_file(dict(part), path)
        else:
            torch.save(dict(part), path)
        paths.append(path)
    return paths


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_every_tensor_comes_once_as_stored_and_in_the_order_of_names(
    tmp_path: Path, kind: str
) -> None:
    expected = _tensors()
    found = list(iter_tensors(_write(tmp_path, kind)[::-1], kind))  # type: ignore[arg-type]
    assert [name for name, _ in found] == sorted(expected)
    for name, tensor in found:
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_names_come_without_the_weights(tmp_path: Path, kind: str) -> None:
    files = _write(tmp_path, kind)
    assert tensor_names(files, kind) == tuple(sorted(_tensors()))  # type: ignore[arg-type]


def test_tensors_stay_valid_after_later_ones_were_read(tmp_path: Path) -> None:
    # each is larger than what may stay mapped, so that the shard is mapped afresh in between
    tensors = {f"t{i}": torch.full((2**23,), float(i)) for i in range(2)}
    save_file(tensors, tmp_path / "m.safetensors")
    found = dict(iter_tensors([tmp_path / "m.safetensors"], "safetensors"))
    assert [int(found[name][[0, -1]].sum()) for name in sorted(found)] == [0, 2]


def test_a_file_written_before_torch_1_6_is_read(tmp_path: Path) -> None:
    torch.save(_tensors(), tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    found = dict(iter_tensors([tmp_path / "m.bin"], "bin"))
    assert torch.equal(found["b.weight"], _tensors()["b.weight"])


def test_a_name_in_two_shards_is_refused_with_both_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    files = sorted(tmp_path.glob("*.safetensors"))
    with pytest.raises(ModelError, match=r"found x in .*one.* and .*two"):
        list(iter_tensors(files, "safetensors"))


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(ModelError, match="found none"):
        list(iter_tensors([], "safetensors"))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut off", "garbage"])
def test_a_damaged_file_is_one_clear_error_that_names_it(
    tmp_path: Path, kind: str, fault: str
) -> None:
    path = _write(tmp_path, kind)[0]
    whole = path.read_bytes()
    content = {"empty": b"", "cut off": whole[: len(whole) - 9], "garbage": os.urandom(256)}
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(content[fault])
    with pytest.raises(ModelError, match=path.name) as raised:
        list(iter_tensors([path], kind))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda b: b"\x80\x02" + b))
)
def test_no_bytes_at_all_give_a_traceback(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(content)
    for kind in ("bin", "safetensors"):
        with pytest.raises(ModelError, match=r"m\.bin"):
            list(iter_tensors([path], kind))  # type: ignore[arg-type]


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"x": Evil()}, tmp_path / "m.bin")
    with pytest.raises(ModelError, match=r"m\.bin") as raised:
        list(iter_tensors([tmp_path / "m.bin"], "bin"))
    assert not (tmp_path / "made").exists()
    assert "\n" not in str(raised.value)


def test_a_bin_file_that_holds_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "m.bin")
    with pytest.raises(ModelError, match="found Tensor"):
        list(iter_tensors([tmp_path / "m.bin"], "bin"))


def test_a_model_in_memory_gives_what_its_checkpoint_gives(tmp_path: Path) -> None:
    for family in ("llama", "gpt2", "opt"):
        folder = save_tiny_model(tmp_path / family, family)
        stored = dict(iter_tensors(list(folder.glob("*.safetensors")), "safetensors"))
        in_memory = list(iter_model(tiny_model(family)))
        assert [name for name, _ in in_memory] == sorted(stored)
        assert all(torch.equal(tensor, stored[name]) for name, tensor in in_memory)


_STREAM = """
import sys
from pathlib import Path
from prunescope.evaluate.checkpoint import iter_tensors

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

before = peak()
for name, tensor in iter_tensors([Path(sys.argv[1])], "safetensors"):
    tensor.sum()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak memory")
def test_streaming_keeps_a_few_tensors_in_memory_and_not_the_file(tmp_path: Path) -> None:
    size = 2**22  # 16 MB a tensor
    path = tmp_path / "m.safetensors"
    save_file({f"t{i:02}": torch.ones(size) for i in range(16)}, path)
    done = subprocess.run(
        [sys.executable, "-c", _STREAM, str(path)], capture_output=True, text=True, check=True
    )
    assert 4 * size <= int(done.stdout) < 5 * 4 * size < path.stat().st_size / 2
