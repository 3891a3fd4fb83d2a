"""Those that are compared: how each is started, what is done to it, and how it is watched."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cache import ROOT, program
from benchmarks.recovery.watching import RUN_ID, RunWatch, ScriptWatch, Watch

# else a restarted rank finds the address of its dead neighbour: https://github.com/pytorch/pytorch/issues/135712
_OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
_MINUTE = 75.0  # seconds: by then raylift has spare processes ready, which it makes after a minute
_SPARES_AGAIN = (14.0, 20.0)  # seconds: so it has after a restart


@dataclass(frozen=True)
class Setting:
    """One run of one contestant."""

    data: Path
    scratch: Path  # a folder of its own
    save_every: int  # steps
    seed: int


@dataclass(frozen=True)
class Contestant:
    name: str
    title: str
    command: Callable[[Setting], list[str]]
    watch: Callable[[Setting], Watch]
    env: Mapping[str, str] = field(default_factory=dict)
    victim: str = "worker"
    signal: signal.Signals = signal.SIGKILL
    settled: float = 10.0  # seconds from the first step to the first kill, beside the pause
    pause: tuple[float, float] = (8.0, 14.0)  # seconds from a recovery to the next kill


def torchrun(setting: Setting) -> list[str]:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "50"]
    return [sys.executable, *words, "-m", "benchmarks.recovery.torchrun_script", *_options(setting)]


def torch_trainer(setting: Setting) -> list[str]:
    return [sys.executable, "-m", "benchmarks.recovery.torch_trainer", *_options(setting)]


def raylift(setting: Setting) -> list[str]:
    sets = {
        "data.train": setting.data,
        "data.eval": setting.data,
        "train.epochs": 1000,
        "train.eval_every": "1000 epochs",  # the others do not evaluate
        "train.log_every": 1,
        "train.max_failures": 50,
        "train.seed": setting.seed,
        "checkpoint.every": f"{setting.save_every} steps",
    }
    options = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    job = ROOT / "benchmarks" / "cnn" / "mnist.yaml"
    command = [str(program("raylift")), "run", str(job), "--id", RUN_ID, "--storage", str(setting.scratch / "runs")]
    return command + options


def _options(setting: Setting) -> list[str]:
    words = ["--data", str(setting.data), "--marks", str(_marks(setting)), "--scratch", str(setting.scratch)]
    return [*words, "--save-every", str(setting.save_every), "--seed", str(setting.seed)]


def _marks(setting: Setting) -> Path:
    return setting.scratch / "marks.jsonl"


def _watch_marks(setting: Setting) -> Watch:
    return ScriptWatch(_marks(setting))


def _watch_run(setting: Setting) -> Watch:
    return RunWatch(setting.scratch / "runs")


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("torchrun", "`torchrun --max-restarts`", torchrun, _watch_marks, env=_OWN_STORE),
        Contestant("ray", "Ray Train `TorchTrainer`", torch_trainer, _watch_marks),
        Contestant("raylift", "raylift", raylift, _watch_run, settled=_MINUTE, pause=_SPARES_AGAIN),
        Contestant("raylift-early", "raylift, in a run's first minute", raylift, _watch_run),
        Contestant("raylift-frozen", "raylift, worker frozen", raylift, _watch_run, signal=signal.SIGSTOP),
        Contestant("raylift-driver", "raylift, driver killed", raylift, _watch_run, victim="driver"),
        Contestant("raylift-raylet", "raylift, raylet killed", raylift, _watch_run, victim="raylet"),
    )
}
ONE_KILL_A_RUN = ("raylift-early",)  # after a restart there are spares at once
