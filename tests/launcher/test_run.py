"""One run from the command line to its end, with two workers on a Ray of its own."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

from cluster.local import LocalProvider, processes_of, scratch_folder
from cluster.runs import Run
from tests.harness import assert_nothing_left, open_run, raylift, start_raylift, wait_for
from trainers.checkpoint import META_FILE, TRAINER_FILE
from trainers.whole import MODEL_FILE, OPTIMIZER_FILE

pytestmark = pytest.mark.ray

JOB = """\
task: image-classification
data: {train: builtin:digits, eval: {split: 0.2}}
train: {epochs: 4, batch_size: 64, seed: 5}
checkpoint: {every: 2 epochs}
cluster: {provider: local, workers: 2}
"""
STEPS = 4 * 23
TIME = r"(?:\d+ min )?[\d.]+ s"


@dataclass
class Followed:
    """A run that was followed to its end."""

    run: Run
    output: str
    exit_code: int
    loaded: dict[str, set[str]] = field(default_factory=dict)  # of ray and torch, what each kind of process loaded


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.fixture(scope="module")
def followed(job: Path) -> Followed:
    run = open_run(job.parent / "runs", "followed")
    with start_raylift("run", job, "--id", run.id, "--storage", job.parent / "runs") as process:
        loaded: dict[str, set[str]] = {"launcher": set()}
        while process.poll() is None:
            loaded["launcher"] |= libraries(psutil.Process(process.pid))
            for each in processes_of(scratch_folder(run.id)):
                loaded.setdefault(kind(each), set()).update(libraries(each))
            time.sleep(0.2)
        output, _ = process.communicate()
        return Followed(run, output, process.returncode, loaded)


def kind(process: psutil.Process) -> str:
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    kinds = {
        "cluster.supervisor": "supervisor",
        "trainers.main": "driver",
        "RayTrainWorker": "worker",
        "ray::IDLE": "worker to be",  # it imports what ranks need before it becomes one
    }
    return next((name for mark, name in kinds.items() if mark in title), "other")


def libraries(process: psutil.Process) -> set[str]:
    """Return which of ray and torch a process has loaded, by the libraries that it maps."""
    marks = {"_raylet.so": "ray", "libtorch": "torch"}
    try:
        paths = [library.path for library in process.memory_maps()]
    except psutil.Error:
        return set()
    return {name for mark, name in marks.items() for path in paths if mark in path}


def lines(output: str) -> list[str]:
    return output.splitlines()


def test_a_run_that_succeeds_is_0(followed: Followed) -> None:
    assert followed.exit_code == 0, followed.output


def test_the_screen_tells_the_run_from_its_start_to_what_can_be_done_next(followed: Followed) -> None:
    uri = re.escape(followed.run.uri)
    expected = [
        f"run {uri}",
        "starting Ray and reading the data",
        r"data: 1438 to train on, 359 to evaluate, 10 classes, 8x8x1",
        rf"training: {STEPS} steps, 2 ranks on cpu, [\d,]+ parameters",
        r"epoch 1: eval loss [\d.]+  accuracy [\d.]+  f1 [\d.]+",
        r"epoch 1: train loss [\d.]+",
        rf"saved: checkpoint of step 46, [\d.]+ [kM]B, in {TIME}.*",
        r"epoch 4: train loss [\d.]+",
        rf"saved: checkpoint of step 92, [\d.]+ [kM]B, in {TIME}.*",
        rf"SUCCEEDED in {TIME}  eval_loss [\d.]+  eval_accuracy [\d.]+  eval_f1 [\d.]+  loss [\d.]+",
        f"export it: raylift export {uri} DIR",
        f"see it:    raylift report {uri}",
    ]
    told = lines(followed.output)
    places = [next((place for place, line in enumerate(told) if re.fullmatch(one, line)), -1) for one in expected]
    assert -1 not in places, f"missing: {expected[places.index(-1)]}\n{followed.output}"
    order = [place for one, place in zip(expected, places, strict=True) if not one.startswith("epoch")]
    assert order == sorted(order)


def test_nothing_of_the_run_is_left_on_this_machine(followed: Followed) -> None:
    assert followed.exit_code == 0
    assert_nothing_left(followed.run.id)


def test_only_the_ranks_load_torch_and_the_launcher_loads_no_ray(followed: Followed) -> None:
    loaded = followed.loaded
    assert loaded["worker"] == {"ray", "torch"}
    assert loaded["driver"] == {"ray"}
    assert loaded["launcher"] == loaded["supervisor"] == set()
    assert "torch" not in loaded.get("other", set())


def test_the_run_folder_is_laid_out_as_designed(followed: Followed) -> None:
    root = Path(followed.run.uri)
    found = {re.sub(r"\d{8}\.jsonl$", "N.jsonl", path.relative_to(root).as_posix()) for path in root.rglob("*.*")}
    checkpoint = {MODEL_FILE, OPTIMIZER_FILE, TRAINER_FILE, META_FILE, "manifest.json"}
    attempt = "attempts/000001"
    required = {
        "job.yaml",
        f"{attempt}/claim.json",
        f"{attempt}/result.json",
        f"{attempt}/events/driver-N.jsonl",
        f"{attempt}/events/rank-0-N.jsonl",
        f"{attempt}/metrics/rank-0-N.jsonl",
        *(f"{attempt}/checkpoints/{step:09d}/{name}" for step in (46, 92) for name in checkpoint),
    }
    assert required <= found
    others = rf"{attempt}/(logs/(driver|rank-\d)-N\.jsonl|alive\.json)"  # which have come where they were needed
    assert all(re.fullmatch(others, path) for path in found - required)


def test_every_checkpoint_verifies_and_its_model_part_loads(followed: Followed, tmp_path: Path) -> None:
    for checkpoint in followed.run.checkpoints():
        followed.run.fetch(checkpoint, tmp_path / str(checkpoint.step))
        with safe_open(tmp_path / str(checkpoint.step) / MODEL_FILE, framework="numpy") as model:
            assert "output.weight" in model.keys()  # noqa: SIM118


def test_every_step_was_taken_once_by_both_ranks(followed: Followed) -> None:
    rows = followed.run.rows("metrics")
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, STEPS + 1))
    (began,) = [row for row in followed.run.rows("events") if row["event"] == "training"]
    assert began["world_size"] == 2


def test_status_and_ps_tell_the_same_end(followed: Followed) -> None:
    status = json.loads(raylift("status", followed.run.uri, "--json").stdout)
    (listed,) = json.loads(raylift("ps", "--storage", followed.run.storage.uri, "--json").stdout)
    for told in (status, listed):
        assert (told["state"], told["step"], told["exit_code"], told["restarts"]) == ("SUCCEEDED", STEPS, 0, 0)
    assert status["checkpoints"] == [46, 92]
    assert status["data"]["train"] == 1438


def test_the_memory_of_every_process_is_told(followed: Followed) -> None:
    told = {row["process"] for row in followed.run.rows("events") if row["event"] == "memory"}
    assert told == {"driver", "rank 0", "rank 1"}


@pytest.mark.slow
def test_a_detached_run_goes_on_alone_and_can_be_followed_stopped_and_resumed(job: Path) -> None:
    started = time.monotonic()
    long = ("--set", "train.epochs=400", "--set", "checkpoint.every=50 epochs")
    done = raylift("run", job, "--id", "detached", "--storage", job.parent / "runs", "-d", "--json", *long)
    run = open_run(job.parent / "runs", "detached")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"run_id": "detached", "run_uri": run.uri})
    assert time.monotonic() - started < 30
    wait_for(lambda: len(run.rows("metrics")) > 5, "the run to train")
    asked = time.monotonic()
    assert raylift("stop", run.uri).returncode == 0
    followed = raylift("logs", "-f", run.uri)
    assert time.monotonic() - asked < 30
    assert followed.stdout.splitlines()[-1].startswith("STOPPED: ")
    stopped = run.result()
    assert stopped is not None
    assert run.checkpoints()[-1].step == stopped.step
    wait_for(lambda: not processes_of(scratch_folder(run.id)), "its processes to end")
    resumed = raylift("resume", run.uri, "-d", "--json")
    assert json.loads(resumed.stdout) == {"run_id": "detached", "run_uri": run.uri}
    wait_for(lambda: len(run.attempts()) == 2 and run.rows_of(2, "metrics"), "the run to go on")
    assert run.rows_of(2, "metrics")[0]["step"] == stopped.step + 1
    assert raylift("stop", "--now", run.uri).returncode == 0
    assert_nothing_left(run.id)


@pytest.mark.slow
def test_a_run_that_another_machine_takes_over_ends_here_and_claims_nothing(job: Path) -> None:
    long = ("--set", "train.epochs=400", "--set", "checkpoint.every=20 steps")
    assert raylift("run", job, "--id", "taken-over", "--storage", job.parent / "runs", "-d", *long).returncode == 0
    run = open_run(job.parent / "runs", "taken-over")
    try:
        wait_for(lambda: len(run.checkpoints()) > 1, "a checkpoint")
        other = run.claim(launch="of another machine")
        wait_for(lambda: not processes_of(scratch_folder(run.id)) or len(run.attempts()) > 2, "the run to end here")
        assert run.attempts()[-1] == other.number
        assert run.result_of(other.number) is None
    finally:
        LocalProvider().teardown(run.id)
