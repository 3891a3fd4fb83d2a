"""Tensors in memory that are sent as a file of safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from trainers.tensor_file import tensor_file

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
