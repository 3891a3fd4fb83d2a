"""Tensors in memory that are sent as a file of safetensors, and read from one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from cluster.errors import CorruptObjectError, StorageError
from cluster.outages import patient
from cluster.records import Checkpoint
from cluster.runs import Run
from cluster.storage.base import Digest
from cluster.storage.file import FileStorage
from cluster.storage.targets import Target
from cluster.tensor_file import Header
from trainers.tensor_file import load_tensors, tensor_file

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def written(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    path.write_bytes(b"".join(tensor_file(tensors, metadata).pieces()))
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_of_numbers_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "matrix": (torch.randn(5, 3) * 50).to(dtype),
        "number": torch.tensor(3.0).to(dtype),
        "none": torch.empty(0, 4).to(dtype),
        "of each width": torch.ones(3),
    }
    loaded = load_file(written(tmp_path / "file", tensors, {"format": "pt"}))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(loaded[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))
        assert loaded[name].data_ptr() % loaded[name].element_size() == 0


def test_the_file_is_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {"b.weight": torch.randn(7, 3), "a": torch.randn(2).bfloat16(), "ä": torch.arange(3)}
    metadata = {"optimizer": '{"name": "adam"}'}
    assert written(tmp_path / "file", tensors, metadata).read_bytes() == save(tensors, metadata)
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == metadata


def test_what_lies_in_memory_in_another_order_is_written_in_its_own(tmp_path: Path) -> None:
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    loaded = load_file(written(tmp_path / "file", {"weights": weights, "turned": weights[0, 0].T}, {}))
    assert torch.equal(loaded["weights"], weights)
    assert torch.equal(loaded["turned"], weights[0, 0].T)


def test_tensors_that_are_contiguous_are_not_copied() -> None:
    weights = torch.zeros(1000)
    file = tensor_file({"weights": weights}, {})
    weights.fill_(1)
    assert file.read(file.size - 4000, file.size) == weights.numpy().tobytes()


def test_a_type_that_the_format_has_not_is_refused() -> None:
    with pytest.raises((SafetensorError, KeyError)):
        tensor_file({"a": torch.zeros(2, dtype=torch.complex128)}, {})


NAME = "model.safetensors"


def stored(folder: Path, tensors: dict[str, Tensor]) -> tuple[Run, Checkpoint]:
    """Return a run with a file of tensors, and the checkpoint that this is in."""
    run, checkpoint = Run(FileStorage(folder), "run"), Checkpoint(1, 1, {}, {})
    path = run.path(f"{checkpoint.folder}/{NAME}")
    digest = run.storage.upload(tensor_file(tensors, {"format": "pt"}), path)
    return run, Checkpoint(1, 1, {NAME: digest}, {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_is_read_into_the_tensors_that_are_there(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "matrix": (torch.randn(5, 3) * 50).to(dtype),
        "number": torch.tensor(3.0).to(dtype),
        "none": torch.empty(0, 4).to(dtype),
        "large": torch.ones(400_000).to(dtype),
        "turned": (torch.randn(4, 7) * 50).to(dtype),
    }
    there = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    there["turned"] = torch.zeros(7, 4, dtype=dtype).T  # its numbers lie in another order than those of the file
    loaded, metadata = load_tensors(*stored(tmp_path, tensors), NAME, lambda _: there)
    assert metadata == {"format": "pt"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].data_ptr() == there[name].data_ptr()
        assert torch.equal(there[name].contiguous().flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


class BreaksOff(FileStorage):
    """Brings other bytes at first, and breaks off before anything shows that they are others."""

    has_broken_off = False

    def download(self, path: str, target: Path | Target, *, expect: Digest) -> None:
        if not self.has_broken_off and not isinstance(target, Path):
            self.has_broken_off = True
            target.begin()
            for piece in target.room(0, expect.size - 4):
                piece[:] = b"x" * len(piece)
            target.arrived(expect.size - 4)
            raise StorageError("the storage does not answer any more")
        super().download(path, target, expect=expect)


def test_nothing_stays_of_what_came_before_storage_broke_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.outages._PAUSE", 0.01)
    tensors = {"first": torch.randn(6, 5), "across": torch.randn(4, 7), "last": torch.randn(9)}
    there = {"first": torch.zeros(6, 5), "across": torch.zeros(7, 4).T, "last": torch.zeros(9)}
    run, checkpoint = stored(tmp_path, tensors)
    storage = BreaksOff(tmp_path)
    load_tensors(patient(Run(storage, run.id)), checkpoint, NAME, lambda _: there)
    assert storage.has_broken_off
    assert all(torch.equal(there[name], tensor) for name, tensor in tensors.items())


def test_what_does_not_fit_is_returned_as_a_new_tensor(tmp_path: Path) -> None:
    tensors = {"longer": torch.ones(5), "finer": torch.ones(5), "unknown": torch.ones(5)}
    there = {"longer": torch.zeros(4), "finer": torch.zeros(5, dtype=torch.float16), "none such": torch.zeros(5)}
    loaded, _ = load_tensors(*stored(tmp_path, tensors), NAME, lambda _: there)
    assert all(torch.equal(loaded[name], torch.ones(5)) for name in tensors)
    assert not any(tensor.any() for tensor in there.values())


def test_a_header_that_is_longer_than_most_is_read(tmp_path: Path) -> None:
    tensors = {f"layer-{number}-{'x' * 200}": torch.tensor(float(number)) for number in range(1000)}
    loaded, _ = load_tensors(*stored(tmp_path, tensors), NAME, lambda _: {})
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_header_that_cannot_be_placed_is_damage_only_where_the_file_is_damaged(tmp_path: Path) -> None:
    run, checkpoint = stored(tmp_path, {"weights": torch.ones(5)})

    def place(header: Header) -> dict[str, torch.Tensor]:
        return {name: {"biases": torch.zeros(5)}[name] for name in header.tensors}

    with pytest.raises(KeyError, match="weights"):
        load_tensors(run, checkpoint, NAME, place)
    file = tmp_path / run.path(f"{checkpoint.folder}/{NAME}")
    file.write_bytes(file.read_bytes().replace(b"weights", b"weighty"))
    with pytest.raises(CorruptObjectError, match="is damaged"):
        load_tensors(run, checkpoint, NAME, place)


@pytest.mark.parametrize("at", [0, 12, -5])
def test_a_file_that_is_damaged_is_not_read(tmp_path: Path, at: int) -> None:
    run, checkpoint = stored(tmp_path, {"weights": torch.ones(5)})
    file = tmp_path / run.path(f"{checkpoint.folder}/{NAME}")
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptObjectError, match=r"is damaged|is no safetensors file"):
        load_tensors(run, checkpoint, NAME, lambda _: {})
