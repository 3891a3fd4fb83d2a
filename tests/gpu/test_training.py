"""Training on a GPU in this process: precision, resumes, and what a save holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from cluster.errors import InfrastructureError
from cluster.records import Checkpoint
from cluster.runs import Run
from launcher.verdict import TOLERANCE, compare
from tests.gpu.card import AloneInAGroup, OnProcessors, needs_gpu, occupied
from tests.harness import losses
from tests.trainers.training import (
    EVERYTHING,
    STEPS_PER_EPOCH,
    Change,
    assert_alike,
    cut_off,
    events,
    start,
    steps_of,
    train,
    train_ranks,
)
from trainers import control, loop
from trainers.config import OPTIMIZERS
from trainers.context import LocalContext, StopReason
from trainers.host_memory import HostMemory
from trainers.parallel import replicate
from trainers.state import flatten
from trainers.whole import MODEL_FILE, OPTIMIZER_FILE, WholeFiles

pytestmark = needs_gpu
LAST = 3 * STEPS_PER_EPOCH


def precision(name: str) -> Change:
    return {"train": {"precision": name}}


def files(run: Run, step: int) -> dict[str, bytes]:
    found = next(one for one in run.checkpoints() if one.step == step)
    return {name: run.storage.read(run.path(f"{found.folder}/{name}")) for name in found.files}


def scaler(run: Run, step: int) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(files(run, step)["trainer.json"])["scaler"]
    return state


def digests(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: digest.sha256 for name, digest in checkpoint.files.items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_auto_is_bf16_on_a_gpu(tmp_path: Path) -> None:
    run = start(tmp_path, precision("auto"), {"train": {"max_steps": 2}})
    train(run)
    [began] = events(run, "training")
    assert (began["device"], began["precision"]) == ("cuda:0", "bf16")


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_run_cut_off_on_a_gpu_goes_on_with_the_same_samples_and_losses(name: str, tmp_path: Path) -> None:
    whole = start(tmp_path, EVERYTHING, precision(name))
    train(whole)
    run = cut_off(whole, 5, tmp_path / "cut")
    train(run)
    verdict = compare(whole, run)
    assert verdict.equal, verdict
    assert verdict.tolerance == TOLERANCE[name]
    assert steps_of(run) == list(range(1, LAST + 1))
    assert losses(run) == losses(whole), "on one card with one version, the bits are the same too"
    assert digests(run.checkpoints()[-1]) == digests(whole.checkpoints()[-1])


def test_the_scaler_of_fp16_is_saved_and_restored_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.amp.GradScaler

    def growing(device: str, enabled: bool) -> torch.amp.GradScaler:
        return made(device, enabled=enabled, init_scale=2.0**24, growth_interval=3)  # overflows, and then grows

    monkeypatch.setattr(torch.amp, "GradScaler", growing)
    whole = start(tmp_path, precision("fp16"), {"train": {"epochs": 6}})
    train(whole)
    states = [scaler(whole, step) for step in range(1, 6 * STEPS_PER_EPOCH + 1)]
    assert states[0]["scale"] < 2.0**24, "the first step overflowed, and was left out"
    assert len({state["_growth_tracker"] for state in states}) == 3
    for step in (1, 14):
        run = cut_off(whole, step, tmp_path / f"cut-{step}")
        train(run)
        assert [scaler(run, later) for later in range(step + 1, len(states) + 1)] == states[step:]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_on_a_gpu(optimizer: str, tmp_path: Path) -> None:
    momentum = {"momentum": 0.9} if optimizer in ("sgd", "rmsprop", "muon") else {}
    chosen = {"name": optimizer, "weight_decay": 0.01, **momentum}
    whole = start(tmp_path, EVERYTHING, {"train": {"optimizer": chosen, "max_steps": 6}})
    train(whole)
    run = cut_off(whole, 3, tmp_path / "cut")
    train(run)
    assert compare(whole, run).equal, compare(whole, run)


@pytest.mark.parametrize(("first", "then"), [(LocalContext, OnProcessors), (OnProcessors, LocalContext)])
def test_a_run_goes_on_on_processors_and_back(
    first: type[LocalContext], then: type[LocalContext], tmp_path: Path
) -> None:
    whole = start(tmp_path, {"train": {"clip_norm": 1.0}})  # dropout draws other numbers there
    train(whole, context=first())
    run = cut_off(whole, 5, tmp_path / "cut")
    train(run, context=then())
    assert compare(whole, run).equal, compare(whole, run)


def test_a_wish_to_stop_is_heard_within_steps_though_rows_are_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []

    def stop(_: control.Control) -> StopReason | None:
        asked.append(None)
        return StopReason.PERSON if len(asked) >= 10 else None

    monkeypatch.setattr(control.Control, "stop", stop)
    rare = {"every": "50 epochs"}
    run = start(tmp_path, {"train": {"epochs": 99, "batch_size": 4, "log_every": 1000}, "checkpoint": rare})
    outcome = train(run)
    assert outcome.stopped is StopReason.PERSON
    assert 10 <= outcome.step <= 12
    assert run.checkpoints()[-1].step == outcome.step


# -- saves


def test_every_checkpoint_is_the_state_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[int, list[dict[str, Tensor]]] = {}
    save = loop.Trainer.save

    def note(trainer: loop.Trainer, *, last: bool) -> None:
        parts = trainer.model.state_dict(), flatten(trainer.optimizer)[0]
        states[trainer.progress.step] = [{name: one.cpu().clone() for name, one in part.items()} for part in parts]
        save(trainer, last=last)

    monkeypatch.setattr(loop.Trainer, "save", note)
    run = start(tmp_path, EVERYTHING, {"data": {"image_size": 96}})  # 8 million numbers with the optimizer's
    train(run)
    assert [*states] == list(range(1, LAST + 1))
    for step, (model, optimizer) in states.items():
        saved = files(run, step)
        assert_same(load(saved[MODEL_FILE]), model)
        assert_same(load(saved[OPTIMIZER_FILE]), optimizer)
    told = events(run, "checkpoint")
    assert len(told) == LAST
    assert all(0 < row["blocked"] < row["seconds"] + 1 for row in told)


def test_a_copy_goes_to_pinned_memory_behind_the_loop_and_is_of_the_moment_that_it_was_asked_for() -> None:
    memory = HostMemory()
    cut = torch.randn(300, 200, device="cuda")[:, ::2]
    state = {"large": torch.randn(1 << 26, device="cuda"), "cut": cut, "step": torch.tensor(3.0)}
    expected = {name: tensor.cpu().clone() for name, tensor in state.items()}
    memory.copy("model", state)
    memory.wait()
    for _ in range(3):
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second, in which the loop asks for more
        copies = memory.copy("model", state)
        behind = not torch.cuda.current_stream().query()
        memory.hold()
        for tensor in state.values():
            tensor.add_(1)
        memory.wait()
        assert behind, "it did not wait for the GPU"
        assert copies["large"].is_pinned()
        assert copies["cut"].is_contiguous()
        assert_same(copies, expected)
        expected = {name: tensor.cpu().clone() for name, tensor in state.items()}
    assert memory.size == sum(tensor.nbytes for tensor in expected.values()), "the same memory each time"


def test_a_restore_goes_into_the_tensors_that_are_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore, held = WholeFiles.restore, []

    def note(self: WholeFiles, trainer: loop.Trainer, *rest: Any) -> None:
        before = {name: one.data_ptr() for name, one in trainer.model.state_dict().items()}
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        restore(self, trainer, *rest)
        held.append(torch.cuda.max_memory_allocated() - allocated)
        assert {name: one.data_ptr() for name, one in trainer.model.state_dict().items()} == before
        optimizer = flatten(trainer.optimizer)[0]
        held.append(sum(one.nbytes for one in optimizer.values() if one.is_cuda))
        for tensor in optimizer.values():
            assert tensor.is_cuda or tensor.ndim == 0

    monkeypatch.setattr(WholeFiles, "restore", note)
    whole = start(tmp_path, EVERYTHING, {"data": {"image_size": 96}})
    train(whole)
    run = cut_off(whole, 5, tmp_path / "cut")
    train(run)
    assert losses(run) == losses(whole)
    most, optimizer = held
    assert optimizer > 8_000_000
    assert most < optimizer + 1_000_000, "nothing but the optimizer's state was made there, and that once"


# -- memory


def test_a_rank_without_enough_gpu_memory_says_what_it_held_and_needed(tmp_path: Path) -> None:
    large = {"data": {"image_size": 256}, "train": {"batch_size": 160}}
    run = start(tmp_path, large)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    said = r"rank 0 ran out of GPU memory, at step 1: it held \d+\.\d GB of the \d+\.\d GB of an .+ at most, and needed"
    with occupied(left=400 << 20), pytest.raises(InfrastructureError, match=said):
        train(run)
    torch.cuda.empty_cache()
    train(run)
    assert steps_of(run)[-1] == 3, "with enough of it, the run goes on"


# -- process groups


def test_a_rank_joins_a_group_of_nccl_and_its_gradients_are_those_of_no_group() -> None:
    nccl = AloneInAGroup()
    nccl.join()
    try:
        assert torch.distributed.get_backend() == "nccl"
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).cuda()
        data = torch.randn(4, 8, device="cuda")
        model(data).square().sum().backward()
        alone = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        replicate(model, nccl.device(), None, uses_all=True)(data).square().sum().backward()
        assert alone
        for parameter, expected in zip(model.parameters(), alone, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, expected)
    finally:
        nccl.leave()
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL takes no two ranks on one GPU, and there are not two")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_on_two_gpus_compute_what_one_does(parallel: str, tmp_path: Path) -> None:
    one, two = start(tmp_path, run_id="one"), start(tmp_path, {"train": {"parallel": parallel}}, run_id="two")
    train(one)
    train_ranks(two, 2)
    assert_alike(one, two, "step")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_parts_of_fsdp_are_saved_from_a_gpu_and_restored_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("trainers.sharding", "trainers.loop"):  # a rank alone holds the whole: here, all parts of it
        monkeypatch.setattr(f"{place}.is_sharded", lambda job, _: job.train.parallel == "fsdp")
    whole = start(tmp_path, EVERYTHING, precision(name), {"train": {"parallel": "fsdp"}})
    train(whole, context=AloneInAGroup())
    assert "model-rank-0-of-1.safetensors" in whole.checkpoints()[-1].files
    run = cut_off(whole, 5, tmp_path / "cut")
    train(run, context=AloneInAGroup())
    assert compare(whole, run).equal, compare(whole, run)
    plain = start(tmp_path, EVERYTHING, precision(name), run_id="plain")
    train(plain)
    assert compare(plain, whole).equal, compare(plain, whole)
