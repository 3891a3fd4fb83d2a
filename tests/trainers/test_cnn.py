"""trainers/models/cnn.py: the plain layers' function, faster."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.models.cnn import CNN

TRAIN = """
import hashlib, torch
from trainers.models.cnn import CNN
torch.set_num_threads(1)
torch.manual_seed(3)
model = CNN(1, 10, 28, dropout=0.5)
optimizer = torch.optim.Adam(model.parameters(), fused=True)
for step in range(4):
    torch.manual_seed(step)
    loss = torch.nn.functional.cross_entropy(model(torch.rand(32, 1, 28, 28)), torch.arange(32) % 10)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as a rank; more of them wait for each other where the machine is busy


def plain(channels: int, classes: int, size: tuple[int, int], padding: int) -> nn.Sequential:
    """Return the network as the tutorials write it."""

    def side(pixels: int) -> int:
        lost = 0 if padding else 2
        return ((pixels - lost) // 2 - lost) // 2 - lost

    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels, 32, 3, padding=padding)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3, padding=padding)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("conv3", nn.Conv2d(64, 64, 3, padding=padding)),
        ("relu3", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("dense", nn.Linear(64 * side(size[0]) * side(size[1]), 64)),
        ("relu4", nn.ReLU()),
        ("output", nn.Linear(64, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


def images(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


def learn(model: nn.Module, batch: Tensor) -> Tensor:
    output: Tensor = model(batch)
    nn.functional.cross_entropy(output, torch.arange(len(batch)) % 10, reduction="sum").backward()
    return output


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [4, 5, 8, 11, 17, 18, 19, 20, 21, 28, 32, 35])
def test_outputs_and_gradients_are_those_of_the_plain_layers(side: int, channels: int) -> None:
    torch.manual_seed(0)
    fast, slow = CNN(channels, 10, side), plain(channels, 10, (side, side), padding=int(side < 18))
    slow.load_state_dict(fast.state_dict())
    batch = images(6, channels, (side, side))
    torch.testing.assert_close(learn(fast, batch), learn(slow, batch))
    for (name, own), other in zip(fast.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("size", [(18, 30), (6, 40), (33, 20)])
def test_images_need_not_be_square(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    fast, slow = CNN(3, 10, size), plain(3, 10, size, padding=int(min(size) < 18))
    slow.load_state_dict(fast.state_dict())
    torch.testing.assert_close(fast(images(2, 3, size)), slow(images(2, 3, size)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_model_loads_into_the_plain_layers(channels: int, tmp_path: Path) -> None:
    model = CNN(channels, 10, 28)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    plain(channels, 10, (28, 28), padding=0).load_state_dict(load_file(tmp_path / "model.safetensors"))


def test_at_28_pixels_it_has_the_93_322_parameters_of_the_tutorials_model() -> None:
    assert sum(parameter.numel() for parameter in CNN(1, 10, 28).parameters()) == 93_322


def test_two_processes_train_to_the_same_bits() -> None:
    command = [sys.executable, "-c", TRAIN]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate(timeout=120)[0] for process in both)
    assert len(first.strip()) == 64
    assert first == second


def test_dropout_is_a_function_of_the_seed() -> None:
    model = CNN(1, 10, 8, dropout=0.5)
    outputs = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        outputs.append(model(images(4, 1, (8, 8))))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("side", [8, 28])
def test_an_empty_batch_gives_every_parameter_a_zero_gradient(side: int) -> None:
    model = CNN(1, 10, side, dropout=0.5)
    assert learn(model, images(0, 1, (side, side))).shape == (0, 10)
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.any()] == []


@pytest.mark.parametrize("channels", [1, 3])
def test_ddp_takes_its_gradients_without_a_warning(channels: int, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(CNN(channels, 10, 28), gradient_as_bucket_view=True)
        for count in (4, 0, 3):  # a warning is an error here
            model.zero_grad()
            learn(model, images(count, channels, (28, 28)))
    finally:
        del model  # which must not be the last to let go of the process group: see trainers.worker
        torch.distributed.destroy_process_group()


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 30x28 pixels: the model is for 28x28"):
        CNN(1, 10, 28)(images(1, 1, (30, 28)))


def test_images_below_4_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="3x9 pixels: a side needs 4 or more"):
        CNN(1, 10, (3, 9))
