"""trainers/muon.py: Muon for the hidden matrices, AdamW for the rest."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainers.muon import MuonWithAdamW, orthogonalize


class Tagger(nn.Module):
    """Every kind of parameter that the two optimizers share out between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Parameter(torch.zeros(1, 6))
        self.embedding = nn.Embedding(10, 6)
        self.conv = nn.Conv1d(6, 4, 3)
        self.hidden = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.conv((self.embedding(words) + self.token).transpose(1, 2)).mean(2)
        logits: Tensor = self.head(self.norm(self.hidden(x).relu()))
        return logits


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 3) -> None:
    words = torch.arange(40).view(8, 5) % 10
    for _ in range(steps):
        model.zero_grad()
        nn.functional.cross_entropy(model(words), torch.arange(8) % 5).backward()
        for optimizer in optimizers:
            optimizer.step()


def test_muon_takes_the_hidden_matrices_and_adamw_embeddings_output_norms_biases_and_rows() -> None:
    optimizer = MuonWithAdamW(Tagger(), lr=0.02)
    names = {group["muon"]: set[str]() for group in optimizer.param_groups}
    for group in optimizer.param_groups:
        names[group["muon"]].update(group["param_names"])
    assert names[True] == {"conv.weight", "hidden.weight"}
    assert names[False] == {
        *("token", "embedding.weight", "conv.bias", "hidden.bias"),
        *("norm.weight", "norm.bias", "head.weight", "head.bias"),
    }


def test_a_matrix_is_stepped_as_by_torchs_muon_to_the_bit() -> None:
    # torch's works in bfloat16 everywhere, ours on a CPU in the precision of the weights
    ours, theirs = Tagger().bfloat16(), Tagger().bfloat16()
    train(ours, MuonWithAdamW(ours, lr=0.02, weight_decay=0.1), steps=1)
    muon = torch.optim.Muon([theirs.hidden.weight], lr=0.02, weight_decay=0.1)
    train(theirs, muon, steps=1)
    assert torch.equal(ours.hidden.weight, theirs.hidden.weight)


def test_the_rest_is_stepped_as_by_torchs_adamw_to_the_bit() -> None:
    ours, theirs = Tagger(), Tagger()
    train(ours, MuonWithAdamW(ours, lr=0.02, weight_decay=0.1), steps=1)
    adamw = torch.optim.AdamW([theirs.head.weight], lr=0.0003, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.1)
    train(theirs, adamw, steps=1)
    assert torch.equal(ours.head.weight, theirs.head.weight)


def test_a_kernel_is_stepped_as_the_matrix_of_its_rows() -> None:
    kernel = nn.Conv2d(3, 8, 3, bias=False)
    matrix = nn.Linear(27, 8, bias=False)
    nn.init.orthogonal_(matrix.weight)
    kernel.load_state_dict({"weight": matrix.weight.detach().view_as(kernel.weight)})
    for layer in (kernel, matrix):
        layer.weight.grad = torch.linspace(-1, 1, 216).view_as(layer.weight)
        MuonWithAdamW(nn.Sequential(layer, nn.Linear(8, 2)), lr=0.02).step()
    assert torch.equal(kernel.weight.flatten(1), matrix.weight)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((20, 50), (50, 20), (30, 30)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min().item() > 0.6
        assert values.max().item() < 1.3


def test_a_zero_gradient_gives_a_zero_update() -> None:
    assert not orthogonalize(torch.zeros(3, 4)).any()


def test_a_loaded_state_dict_is_what_the_next_step_uses() -> None:
    first, second = Tagger(), Tagger()
    one, other = MuonWithAdamW(first, lr=0.02), MuonWithAdamW(second, lr=0.02)
    train(first, one)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    train(first, one)
    train(second, other)
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())
