"""Which device a rank trains on."""

from __future__ import annotations

import pytest
import torch

from cluster.errors import DeviceError
from trainers.context import device_from_ray


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the GPUs that Ray gives this process; torch sees none."""
    gpus: list[str] = []
    monkeypatch.setattr("ray.get_gpu_ids", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return gpus


@pytest.mark.parametrize("made_for", ["cuda", "hip"])
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu(
    given: list[str], monkeypatch: pytest.MonkeyPatch, made_for: str
) -> None:
    monkeypatch.setattr(torch.version, made_for, "12.8")
    assert device_from_ray().type == "cpu"
    given.append("3")
    with pytest.raises(DeviceError, match=r"Ray gave a rank the GPU 3 of .* cannot use it.* nvidia-smi"):
        device_from_ray()


def test_a_torch_for_processors_alone_trains_on_them(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    given.append("0")
    assert device_from_ray().type == "cpu"
