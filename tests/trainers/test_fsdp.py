"""train.parallel: fsdp, on real processes of torchrun joined by gloo: weights and checkpoints in parts."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from cluster.runs import Run
from cluster.shards import INDEX_FILE
from cluster.verification import Verdict, survey, verify
from launcher.export import export_model
from tests.harness import environment, losses, wait_for
from tests.trainers.training import (
    EVERYTHING,
    STEPS_PER_EPOCH,
    Change,
    assert_alike,
    cut_off,
    events,
    of_torchrun,
    start,
    steps_of,
    train,
    train_ranks,
)
from trainers.evaluate import evaluate
from trainers.saved import load_saved

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(600)]
LAST = 3 * STEPS_PER_EPOCH
FSDP: Change = {"train": {"parallel": "fsdp"}}
ALIKE: Change = {"model": {"dropout": 0.0}}  # dropout differs with the number of ranks


def run_meddled(run: Run, folder: Path, what: str = "") -> int:
    """Run one attempt on two ranks that write down their uploads; `what` is what happens to one of them."""
    command = [*of_torchrun(run, 2, "tests.trainers.meddled"), str(folder), *[what][: bool(what)]]
    return subprocess.run(command, capture_output=True, timeout=240, env=environment()).returncode


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def whole(uploads: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on two ranks that nothing happened to; each wrote down in `uploads` what it wrote into storage."""
    run = start(tmp_path_factory.mktemp("whole"), EVERYTHING, FSDP)
    assert run_meddled(run, uploads) == 0
    return run


def files_of(step: int, run: Run) -> dict[str, str]:
    found = next(one for one in run.checkpoints() if one.step == step)
    return {name: digest.sha256 for name, digest in found.files.items()}


def test_every_rank_uploads_its_own_parts_and_rank_0_the_rest(whole: Run, uploads: Path) -> None:
    for rank, more in ((0, {"trainer.json", "raylift.json", INDEX_FILE, "manifest.json"}), (1, set[str]())):
        wrote = (uploads / f"rank-{rank}").read_text().split()
        own = {path.rpartition("/")[2] for path in wrote if "/000000005/" in path}
        assert own == {f"model-rank-{rank}-of-2.safetensors", f"optimizer-rank-{rank}-of-2.safetensors", *more}
    sizes = [digest.size for name, digest in whole.checkpoints()[-1].files.items() if name.startswith("optimizer-")]
    assert max(sizes) < 1.1 * min(sizes), "each holds about half"


def test_fsdp_computes_what_ddp_computes(whole: Run, tmp_path: Path) -> None:
    ddp = start(tmp_path, EVERYTHING)
    train_ranks(ddp, 2)
    for kind in ("step", "epoch", "eval"):
        assert_alike(whole, ddp, kind)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["000000005/optimizer-rank-1-of-2.safetensors", "000000005/manifest.json"])
def test_a_rank_killed_between_its_parts_and_the_manifest_leaves_no_checkpoint_and_the_resume_is_exact(
    whole: Run, tmp_path: Path, at: str
) -> None:
    run = start(tmp_path, EVERYTHING, FSDP)
    assert run_meddled(run, tmp_path, f"die:{int('rank-1' in at)}:{at}") != 0
    assert [one.step for one in run.checkpoints()] == [1, 2, 3, 4]
    found = verify(run, survey(run))
    assert [one.folder.step for one in found.of(Verdict.PARTIAL)] == [5], "its files, without a manifest"
    train_ranks(run, 2)
    assert events(run, "restored")[0]["step"] == 4
    assert losses(run) == losses(whole)
    assert files_of(LAST, run) == files_of(LAST, whole)


@pytest.mark.slow
def test_a_part_that_storage_refuses_for_good_ends_all_ranks_long_before_the_next_save(tmp_path: Path) -> None:
    run = start(tmp_path, FSDP, {"checkpoint": {"every": "100 steps"}}, {"train": {"epochs": 50}})
    assert run_meddled(run, tmp_path, "refuse:1:000000100/optimizer-rank-1-of-2.safetensors") != 0
    assert run.checkpoints() == []
    assert 100 < max(row["step"] for row in run.rows_of(1, "metrics")) < 200


@pytest.mark.slow
def test_a_rank_killed_at_any_moment_repeats_nothing_that_differs(whole: Run, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    run = start(tmp_path, EVERYTHING, FSDP)
    with subprocess.Popen(of_torchrun(run, 2), stderr=subprocess.DEVNULL, env=environment()) as process:
        wait_for(lambda: run.checkpoints() or process.poll() is not None, "a checkpoint")
        time.sleep(draw.random())
        ranks = psutil.Process(process.pid).children()
        if ranks:
            draw.choice(ranks).send_signal(signal.SIGKILL)
    train_ranks(run, 2)
    assert losses(run) == losses(whole), f"seed {seed}"
    assert files_of(LAST, run) == files_of(LAST, whole), f"seed {seed}"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["model-rank-1-of-2.safetensors", INDEX_FILE])
def test_a_damaged_part_is_passed_over_for_the_checkpoint_before(
    whole: Run, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run = cut_off(whole, 6, tmp_path)
    damage(Path(run.uri) / run.checkpoints()[-1].folder / name)
    assert [one.folder.step for one in verify(run, survey(run)).of(Verdict.DAMAGED)] == [6]
    passed_over: list[int] = []
    attempt = run.claim(read=True, on_corrupt=lambda found, _: passed_over.append(found.step))
    base = attempt.start_from()
    assert base is not None
    assert (base.step, passed_over) == (5, [6])
    assert set(base.files) == set(whole.checkpoints()[-1].files), "the copy has all parts"


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start(tmp_path_factory.mktemp("two"), EVERYTHING, ALIKE, FSDP)
    train_ranks(run, 2)
    return run


def test_one_rank_goes_on_from_the_parts_of_two(on_two: Run, tmp_path: Path) -> None:
    run = cut_off(on_two, 5, tmp_path)
    train(run)
    assert [event["world_size"] for event in events(run, "training")] == [2, 1]
    assert INDEX_FILE not in run.checkpoints()[-1].files
    assert_alike(run, on_two, "step")
    assert_alike(run, on_two, "eval")


@pytest.mark.slow
def test_two_ranks_go_on_from_the_whole_of_one_and_three_from_the_parts_of_two(tmp_path: Path) -> None:
    alone = start(tmp_path, EVERYTHING, ALIKE, FSDP)
    train(alone)
    run = cut_off(alone, 4, tmp_path / "two")
    train_ranks(run, 2)
    run = cut_off(run, 8, tmp_path / "three")
    train_ranks(run, 3)
    assert [event["world_size"] for event in events(run, "training")] == [1, 2, 3]
    assert steps_of(run) == list(range(1, LAST + 1))
    assert_alike(run, alone, "step")
    assert_alike(run, alone, "eval")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_an_export_is_one_file_which_is_what_torchs_own_reader_makes_of_the_parts(whole: Run, tmp_path: Path) -> None:
    export_model(whole, tmp_path / "model", "last", force=False, warn=pytest.fail)
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        *("model.safetensors", "config.json", "raylift.json", "README.md")
    }
    parts = {name: torch.empty_like(tensor) for name, tensor in exported.items()}
    folder = Path(whole.uri) / whole.checkpoints()[-1].folder
    load(parts, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert all(torch.equal(exported[name], parts[name]) for name in exported)


def test_evaluating_the_saved_model_gives_the_metrics_of_the_training_to_the_bit(whole: Run) -> None:
    result = whole.result()
    assert result is not None
    found = evaluate(load_saved(whole.uri))
    assert {f"eval_{name}": value for name, value in found.metrics.items()} == {
        name: value for name, value in result.metrics.items() if name.startswith("eval_")
    }


def test_nothing_in_a_checkpoint_is_pickled(whole: Run) -> None:
    for name in whole.checkpoints()[-1].files:
        assert name.endswith((".safetensors", ".json")), name
