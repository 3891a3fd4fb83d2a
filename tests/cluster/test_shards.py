"""Checkpoints in parts: one file made of those of all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cluster.errors import CorruptObjectError
from cluster.shards import Index, Part, TensorLayout, consolidate, joined, model_shards, shard_name

WHOLE = {
    "weight": torch.arange(35, dtype=torch.float32).view(7, 5),
    "half.weight": torch.arange(6).bfloat16().view(3, 2),
    "bias": torch.arange(2, dtype=torch.float16),
    "counts": torch.arange(12).view(3, 2, 2),
    "flags": torch.tensor([True, False, True]),
    "step": torch.tensor(3.0),
    "ä name": torch.ones(1, 1),
}
METADATA = {"format": "pt"}


def cut(folder: Path, ranks: int) -> Index:
    """Write the parts of all tensors as so many ranks have them; some have none of one."""
    layouts = []
    for rank in range(ranks):
        own, layout = {}, {}
        for name, tensor in WHOLE.items():
            parts = tensor.chunk(ranks) if tensor.ndim else (tensor,)
            if rank < len(parts):
                start = sum(len(part) for part in parts[:rank])
                offsets = (start, *[0] * (tensor.ndim - 1)) if tensor.ndim else ()
                part = Part(rank, offsets, tuple(parts[rank].shape))
                own[name] = parts[rank].clone()
                layout[name] = TensorLayout(str(tensor.dtype), tuple(tensor.shape), (part,))
        save_file(own, folder / shard_name("model", rank, ranks), METADATA)
        layouts.append({"model": layout})
    return joined(layouts, {"model": METADATA})


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 9])
def test_the_parts_of_all_ranks_make_the_tensors_that_they_are_parts_of(tmp_path: Path, ranks: int) -> None:
    index = cut(tmp_path, ranks)
    consolidate(tmp_path, index, "model")
    whole = load_file(tmp_path / "model.safetensors")
    assert whole.keys() == WHOLE.keys()
    assert all(whole[name].dtype == tensor.dtype and torch.equal(whole[name], tensor) for name, tensor in WHOLE.items())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == METADATA
    assert not model_shards(path.name for path in tmp_path.iterdir()), "the parts go"


def test_the_index_reads_back_as_it_was_written(tmp_path: Path) -> None:
    index = cut(tmp_path, 3)
    (tmp_path / "shards.json").write_bytes(index.to_json())
    assert Index.read(tmp_path / "shards.json") == index


def test_an_index_that_does_not_read_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "shards.json").write_text('{"ranks": 2, "tensors": {"model": {"weight": []}}}')
    with pytest.raises(CorruptObjectError, match=r"shards\.json does not read"):
        Index.read(tmp_path / "shards.json")


def part(rank: int, start: int, length: int) -> dict[str, dict[str, TensorLayout]]:
    return {"model": {"weight": TensorLayout("float32", (7, 5), (Part(rank, (start, 0), (length, 5)),))}}


@pytest.mark.parametrize(
    "layouts",
    [[part(0, 0, 4)], [part(0, 0, 4), part(1, 5, 2)], [part(0, 0, 4), part(1, 3, 4)], [part(0, 0, 4), part(1, 0, 4)]],
    ids=["an end", "a middle", "an overlap", "twice the same"],
)
def test_parts_that_do_not_make_a_whole_are_no_checkpoint(layouts: list[dict[str, dict[str, TensorLayout]]]) -> None:
    with pytest.raises(CorruptObjectError, match="weight of the model is not whole"):
        joined(layouts, {})


def test_a_file_that_lacks_what_the_index_says_is_corrupt(tmp_path: Path) -> None:
    index = cut(tmp_path, 2)
    path = tmp_path / shard_name("model", 1, 2)
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "weight"}, path)
    with pytest.raises(CorruptObjectError, match="lacks weight"):
        consolidate(tmp_path, index, "model")


def test_a_file_that_ends_too_early_is_corrupt(tmp_path: Path) -> None:
    index = cut(tmp_path, 2)
    path = tmp_path / shard_name("model", 1, 2)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptObjectError, match="ends too early"):
        consolidate(tmp_path, index, "model")
