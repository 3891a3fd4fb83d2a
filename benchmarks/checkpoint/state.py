"""What is saved: a transformer's weights and their Adam state, in fp32."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from trainers.context import LocalContext

_BYTES_A_PARAMETER = 12  # fp32, for the weight and its two moments
_SMALL = 20_000_000  # parameters: below that, layers are narrow, so that there are some


class Training:
    """A model and its optimizer; with what raylift's Checkpointer asks of a trainer."""

    precision = "fp32"
    pulse = SimpleNamespace(goes_on=lambda: None)
    context = LocalContext()

    def __init__(self, size: int, seed: int, device: str = "cpu", *, fresh: bool = False) -> None:
        """Make the state after one step, about `size` bytes; a fresh one, as a resume makes it, has weights alone."""
        from trainers.loop import Progress

        torch.manual_seed(seed)
        self.size = size
        self.model = _transformer(size // _BYTES_A_PARAMETER).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.progress = Progress()
        if fresh:
            return
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> list[Tensor]:
        """Return every tensor of the state, always in the same order."""
        states = [self.optimizer.state[parameter] for parameter in self.model.parameters()]
        moments = [state[key] for state in states for key in ("step", "exp_avg", "exp_avg_sq")]
        return [*self.model.state_dict().values(), *moments]

    def as_dict(self) -> dict[str, object]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, dict[str, object]]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def equals(self, other: Training) -> bool:
        return all(
            torch.equal(one.to(two.device), two) for one, two in zip(self.tensors(), other.tensors(), strict=True)
        )

    def state(self) -> dict[str, object]:
        return {"progress": vars(self.progress).copy(), "scaler": {}, "precision": self.precision}

    def load_state(self, state: dict[str, object]) -> None: ...


def _transformer(parameters: int) -> nn.Module:
    """Return layers of GPT-2's shapes, or of narrower ones, that have about so many parameters together."""
    width = 768 if parameters > _SMALL else 128
    layer = nn.TransformerEncoderLayer(width, max(1, width // 64), 4 * width, batch_first=True)
    count = max(1, round(parameters / sum(one.numel() for one in layer.parameters())))
    return nn.TransformerEncoder(layer, count, enable_nested_tensor=False)
