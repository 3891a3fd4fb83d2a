"""Which ranks the watchdog ends, and which it leaves alone."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.outages import PATIENCE
from tests.harness import environment, wait_for
from tests.trainers.training import start, train
from trainers import watchdog
from trainers.compilation import compilation_shown
from trainers.context import COLLECTIVE_TIMEOUT, LocalContext
from trainers.pulse import Phase, Pulse, Reading, forget_attempts, pulse_folder, read, verdicts
from trainers.watchdog import SILENT, Keeper, Watchdog

RANK = Reading(0, 4242, 10, Phase.COMPUTING, 100, 10**9, longest_step=0.1, longest_evaluation=2.0, evaluations=1)
# a rank that beats, takes two steps and then hangs in the way that its argument says
HANGS = """
import sys, threading, time
from pathlib import Path
from trainers.pulse import Phase, Pulse, show_stacks_when_asked
show_stacks_when_asked()
pulse = Pulse(1, Path(sys.argv[1]))
pulse.step_timeout = 3.0
for _ in range(6):
    pulse.enter(Phase.COMPUTING)
    pulse.enter(Phase.WAITING)
pulse.enter(Phase.COMPUTING)
print("ready", flush=True)
def deadlock():
    threading.Lock().acquire() or None
    lock = threading.Lock(); lock.acquire(); lock.acquire()
deadlock()
"""


class Machine:
    """The ranks of a machine, as their files show them, and the watchdog that looks at them."""

    def __init__(self, folder: Path, *ranks: Reading, world_size: int | None = None) -> None:
        self.folder = folder
        self.ranks = {rank.rank: rank for rank in ranks}
        self.watchdog = Watchdog(folder, len(ranks) if world_size is None else world_size)
        self.after(0)

    def after(self, seconds: float, *silent: int) -> dict[int, str]:
        """Let time pass, in which all ranks beat but those that are `silent`; return whom to end, and why."""
        for rank, reading in self.ranks.items():
            beats = reading.beats + (rank not in silent)
            self.ranks[rank] = replace(reading, beats=beats)
            (self.folder / f"rank-{rank}").write_bytes(self.ranks[rank].packed())
        return {rank: reason for rank, (_, reason) in self.watchdog.look(seconds).items()}

    def moves_on(self, rank: int, phase: Phase) -> None:
        self.ranks[rank] = replace(self.ranks[rank], phase=phase, entries=self.ranks[rank].entries + 1)


def pair(phase: Phase, other: Phase | None = None) -> tuple[Reading, Reading]:
    return replace(RANK, phase=phase), replace(RANK, rank=1, pid=4243, phase=phase if other is None else other)


def test_a_rank_that_no_longer_beats_is_ended(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.WAITING))
    assert machine.after(SILENT - 1, 1) == {}
    assert machine.after(1.1, 1) == {1: "it froze: no sign of life for 8 s"}


def test_a_rank_that_beats_again_in_time_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.EVALUATING))
    assert machine.after(SILENT - 1, 1) == machine.after(1) == machine.after(SILENT - 1, 1) == {}


@pytest.mark.parametrize(
    ("phase", "limit"),
    [(Phase.STARTING, 60), (Phase.COMPILING, 60), (Phase.MEETING, 60), (Phase.WARMING_UP, 20), (Phase.COMPUTING, 8)],
)
def test_imports_may_hold_the_interpreter_for_longer_and_first_steps_a_little(
    tmp_path: Path, phase: Phase, limit: int
) -> None:
    machine = Machine(tmp_path, *pair(phase))
    assert machine.after(limit - 1, 0, 1) == {}
    assert set(machine.after(2, 0, 1)) == {0, 1}


def test_code_that_has_kept_the_interpreter_before_may_do_so_for_twice_as_long(tmp_path: Path) -> None:
    machine = Machine(tmp_path, replace(pair(Phase.COMPUTING)[0], longest_silence=10.0, longest_step=10.0))
    assert machine.after(19, 0) == {}
    assert machine.after(2, 0) == {0: "it froze: no sign of life for 21 s"}


@pytest.mark.parametrize(("phase", "timeout"), [(Phase.COMPUTING, 20), (Phase.EVALUATING, 60), (Phase.STARTING, 90)])
def test_a_job_file_may_let_code_hold_the_interpreter_for_longer(tmp_path: Path, phase: Phase, timeout: int) -> None:
    machine = Machine(tmp_path, replace(pair(phase)[0], step_timeout=timeout))
    assert machine.after(timeout - 1, 0) == {}
    assert machine.after(2, 0) == {0: f"it froze: no sign of life for {timeout + 1} s"}


def test_a_rank_that_computes_many_times_longer_than_ever_is_ended(tmp_path: Path) -> None:
    slow, _ = pair(Phase.COMPUTING)
    machine = Machine(tmp_path, replace(slow, longest_step=10.0))
    assert machine.after(49) == {}
    assert machine.after(2) == {0: "it hung: computing for 51 s (the longest before took 10.0 s)"}


def test_short_steps_have_eight_seconds_all_the_same(tmp_path: Path) -> None:
    machine = Machine(tmp_path, pair(Phase.COMPUTING)[0])
    assert machine.after(7.9) == {}
    assert machine.after(0.2) != {}


def test_a_job_file_may_give_steps_more_time(tmp_path: Path) -> None:
    machine = Machine(tmp_path, replace(pair(Phase.COMPUTING)[0], step_timeout=60.0))
    assert machine.after(59) == {}
    assert machine.after(2) != {}


def test_ranks_that_have_trained_wait_for_the_last_save_as_long_as_storage_may_be_away(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.SAVING, Phase.ENDING))
    assert machine.after(PATIENCE + 60) == {}
    assert COLLECTIVE_TIMEOUT.total_seconds() > PATIENCE + 60


def test_every_step_starts_the_time_anew(tmp_path: Path) -> None:
    machine = Machine(tmp_path, pair(Phase.COMPUTING)[0])
    for _ in range(5):
        assert machine.after(7) == {}
        machine.moves_on(0, Phase.WAITING)
        assert machine.after(7) == {}
        machine.moves_on(0, Phase.COMPUTING)


@pytest.mark.parametrize("busy", [Phase.EVALUATING, Phase.SAVING, Phase.STARTING])
def test_a_rank_that_waits_for_another_is_not_to_blame(tmp_path: Path, busy: Phase) -> None:
    machine = Machine(tmp_path, *pair(Phase.WAITING, busy))
    assert machine.after(9) == {}


def test_of_a_rank_that_hangs_and_one_that_waits_for_it_the_first_is_ended(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.WAITING, Phase.COMPUTING))
    assert set(machine.after(9)) == {1}


def test_where_all_wait_for_each_other_one_is_ended(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.WAITING))
    assert machine.after(9) == {0: "the ranks wait for each other in vain: no step for 9 s"}


def test_where_some_ranks_are_elsewhere_waiting_proves_nothing_for_a_while(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.WAITING), world_size=4)
    assert machine.after(45) == {}
    reason = "it waited in vain for ranks on other machines: no step for 47 s"
    assert machine.after(2) == {0: reason, 1: reason}, "a collective between machines is stuck"


def test_a_rank_that_waits_for_another_machine_while_one_here_computes_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.WAITING, Phase.EVALUATING), world_size=4)
    machine.ranks[1] = replace(machine.ranks[1], longest_evaluation=100.0)
    assert machine.after(300) == {}


def test_the_first_evaluation_may_take_long_and_later_ones_five_times_that(tmp_path: Path) -> None:
    first, later = pair(Phase.EVALUATING)
    machine = Machine(tmp_path, replace(first, evaluations=0), replace(later, longest_evaluation=20.0))
    assert machine.after(99) == {}
    assert set(machine.after(2)) == {1}


def test_a_first_evaluation_has_as_long_as_a_step_of_this_job(tmp_path: Path) -> None:
    machine = Machine(tmp_path, replace(RANK, phase=Phase.EVALUATING, evaluations=0, step_timeout=7200.0))
    assert machine.after(7199) == {}
    assert set(machine.after(2)) == {0}


def test_ranks_that_wait_for_each_other_within_the_first_evaluation_are_ended_as_soon(tmp_path: Path) -> None:
    agreeing = [replace(each, evaluations=0) for each in pair(Phase.AGREEING)]
    machine = Machine(tmp_path, *agreeing)
    assert machine.after(14) == {}
    assert machine.after(2) == {0: "the ranks wait for each other in vain: no step for 16 s"}


def test_a_network_cut_within_the_first_evaluation_is_noticed_in_a_minute(tmp_path: Path) -> None:
    machine = Machine(tmp_path, replace(RANK, phase=Phase.AGREEING, evaluations=0), world_size=2)
    assert machine.after(59) == {}
    assert machine.after(2) == {0: "it waited in vain for ranks on other machines: no step for 61 s"}


def test_a_rank_whose_part_of_an_evaluation_takes_longer_is_waited_for(tmp_path: Path) -> None:
    waiting, busy = (replace(each, evaluations=0) for each in pair(Phase.AGREEING, Phase.EVALUATING))
    assert Machine(tmp_path, waiting, busy, world_size=4).after(25 * 60) == {}
    (tmp_path / "rank-1").unlink()
    far = Machine(tmp_path, replace(waiting, longest_evaluation=20.0), world_size=2)
    assert far.after(2 * 100 + 29) == {}, "each may take five times as long as this one's, and hang as long"
    assert far.after(2) != {}


def test_ranks_of_one_machine_wait_for_one_that_loads_or_compiles_as_long_as_that_may_take(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.MEETING, Phase.STARTING))
    for _ in range(2):
        assert machine.after(29 * 60) == {}
        machine.moves_on(1, Phase.STARTING)


def test_ranks_of_one_machine_may_compile_where_they_seem_to_wait(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.MEETING))
    assert machine.after(29 * 60) == {}
    assert machine.after(2 * 60) == {0: "the ranks wait for each other in vain: no step for 1860 s"}


@pytest.mark.parametrize("timeout", [8.0, 25 * 60.0])
def test_another_machine_may_load_and_compile_a_quarter_of_an_hour_longer_or_what_a_step_may_take(
    tmp_path: Path, timeout: float
) -> None:
    limit = max(15 * 60.0, timeout)
    waiting, loading = (replace(each, step_timeout=timeout) for each in pair(Phase.MEETING, Phase.STARTING))
    machine = Machine(tmp_path, waiting, loading, world_size=4)
    assert machine.after(limit - 1) == {}
    machine.moves_on(1, Phase.MEETING)
    assert machine.after(0) == machine.after(limit - 1) == {}, "one here has come later than the other"
    reasons = machine.after(2)
    assert set(reasons) == {0, 1}
    assert reasons[1] == f"it waited in vain for ranks on other machines: no step for {limit + 1:.0f} s"


def test_a_rank_that_compiles_may_do_so_at_any_step(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.COMPILING, Phase.WAITING))
    assert machine.after(29 * 60) == {}
    assert machine.after(2 * 60) == {0: "it hung: compiling for 1860 s (the longest before took 0.0 s)"}


@pytest.mark.parametrize(("took", "more"), [(3.0, 300.0), (400.0, 800.0)])
def test_ranks_that_have_compiled_give_those_of_other_machines_time_for_it(
    tmp_path: Path, took: float, more: float
) -> None:
    waiting = replace(pair(Phase.WAITING)[0], longest_compilation=took)
    machine = Machine(tmp_path, waiting, world_size=2)
    assert machine.after(2 * 8 + 29 + more) == {}
    assert machine.after(2) != {}


def test_a_forward_pass_may_wait_for_a_rank_of_the_machine_that_compiles(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.COMPUTING, Phase.COMPILING))
    assert machine.after(60) == {}
    machine.moves_on(1, Phase.WAITING)
    assert machine.after(7) == {}
    assert set(machine.after(2)) == {0}


def test_a_save_may_take_as_long_as_storage_is_away(tmp_path: Path) -> None:
    assert Machine(tmp_path, pair(Phase.SAVING)[0]).after(35 * 60) == {}


def test_a_rank_that_was_started_again_has_no_past(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.WAITING))
    machine.after(7, 1)
    machine.ranks[1] = replace(machine.ranks[1], pid=9999)
    assert machine.after(7, 1) == machine.after(7, 1) == {}
    assert machine.after(7, 1) != {}


def test_trials_too_short_to_beat_are_no_silence_though_one_process_trains_them_all(tmp_path: Path) -> None:
    machine = Machine(tmp_path, replace(RANK, beats=0, run_uri="sweep/trials/00000", attempt=1))
    for number in range(1, 100):
        machine.ranks[0] = replace(machine.ranks[0], run_uri=f"sweep/trials/{number:05d}")
        assert machine.after(0.25, 0) == {}
    assert machine.after(SILENT + 0.1, 0) == {0: "it froze: no sign of life for 8 s"}


def test_a_rank_that_has_ended_is_forgotten(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *pair(Phase.WAITING))
    machine.ranks.clear()
    for path in tmp_path.glob("rank-*"):
        path.unlink()
    assert machine.after(100) == {}


# -- what ranks tell


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("trainers.pulse.time.monotonic", lambda: now[0])
    return now


def told(folder: Path) -> Reading:
    reading = read(folder / "rank-3")
    assert reading is not None
    return reading


def test_a_rank_learns_its_longest_step_but_from_those_that_warm_up(tmp_path: Path, clock: list[float]) -> None:
    one = Pulse(3, tmp_path)
    one.enter(Phase.COMPUTING)
    for took in (50.0, 40.0, 2.0, 3.0, 1.0):
        clock[0] += took / 2
        one.enter(Phase.WAITING)
        clock[0] += took / 2
        one.enter(Phase.EVALUATING)
        clock[0] += 100.0
        one.enter(Phase.SAVING)
        clock[0] += 1000.0
        one.enter(Phase.COMPUTING)
    assert told(tmp_path).longest_step == pytest.approx(3.0, rel=0.01)
    assert told(tmp_path).longest_evaluation == 100.0
    one.close()


def test_a_rank_learns_how_long_it_evaluates_between_two_waits_for_the_others(
    tmp_path: Path, clock: list[float]
) -> None:
    one = Pulse(3, tmp_path)
    for _ in range(4):
        one.enter(Phase.COMPUTING)
    one.enter(Phase.EVALUATING)
    clock[0] += 2.0
    shown = []
    for took in (5.0, 1.0, 1.0):
        with one.agreeing():
            shown.append(told(tmp_path).phase)
            clock[0] += 60.0
        assert told(tmp_path).evaluations == 0
        clock[0] += took
    one.enter(Phase.SAVING)
    assert shown == [Phase.MEETING, Phase.MEETING, Phase.AGREEING], "at first others may load and compile"
    assert (told(tmp_path).longest_evaluation, told(tmp_path).evaluations) == (5.0, 1)
    one.enter(Phase.EVALUATING)
    with one.agreeing():
        assert told(tmp_path).phase is Phase.AGREEING
    one.close()


def test_a_rank_is_starting_until_its_first_steps_are_done(tmp_path: Path) -> None:
    one = Pulse(3, tmp_path)
    phases, waits = [], []
    for _ in range(5):
        one.enter(Phase.COMPUTING)
        phases.append(told(tmp_path).phase)
        one.enter(Phase.WAITING)
        waits.append(told(tmp_path).phase)
    one.close()
    assert phases == [Phase.WARMING_UP] * 3 + [Phase.COMPUTING] * 2
    assert waits == [Phase.MEETING] * 3 + [Phase.WAITING] * 2


def test_a_rank_that_starts_shows_where_it_waits_for_others(tmp_path: Path) -> None:
    one = Pulse(3, tmp_path)
    with one.meeting():
        assert told(tmp_path).phase is Phase.MEETING
    assert told(tmp_path).phase is Phase.STARTING
    with one.agreeing():  # in an evaluation that the attempt before owes
        assert told(tmp_path).phase is Phase.MEETING
    one.close()


@pytest.mark.usefixtures("one_thread")
def test_ranks_meet_before_their_first_step_as_those_who_may_have_to_wait_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(Pulse, "enter", lambda _, phase: seen.append(phase))
    monkeypatch.setattr(LocalContext, "join", lambda _: seen.append("join"))
    monkeypatch.setattr("trainers.loop.share_memory", lambda *_: seen.append("share"))
    train(start(tmp_path, {"train": {"max_steps": 1}}))
    met = [Phase.MEETING, "join", Phase.STARTING, Phase.MEETING, "share", Phase.STARTING]
    assert seen[: len(met)] == met


@pytest.mark.parametrize(("waits", "longest"), [((0.0, 0.0, 0.0, 40.0, 0.0), 1.0), ((0.0, 0.0, 9.0, 0.0), 10.0)])
def test_a_step_in_which_it_waited_for_another_for_longer_than_any_may_take_tells_nothing_but_the_first(
    tmp_path: Path, clock: list[float], waits: tuple[float, ...], longest: float
) -> None:
    one = Pulse(3, tmp_path)
    one.enter(Phase.COMPUTING)
    for waited in waits:
        clock[0] += 1.0
        one.enter(Phase.WAITING)
        clock[0] += waited
        one.enter(Phase.COMPUTING)
    assert told(tmp_path).longest_step == pytest.approx(longest, rel=0.01)
    one.close()


def test_the_time_of_a_compilation_is_no_steps(tmp_path: Path, clock: list[float]) -> None:
    one = Pulse(3, tmp_path)
    for _ in range(6):
        one.enter(Phase.COMPUTING)
        clock[0] += 1.0
        one.compiles()
        assert told(tmp_path).phase is Phase.COMPILING
        clock[0] += 100.0
        one.has_compiled()
        one.enter(Phase.WAITING)
    assert told(tmp_path).phase is Phase.WAITING
    assert told(tmp_path).longest_step == pytest.approx(1.0, rel=0.01)
    assert told(tmp_path).longest_compilation == 100.0
    one.close()


def test_a_rank_shows_that_torch_compiles_a_shape_that_it_has_not_seen(tmp_path: Path) -> None:
    seen: list[Phase] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        seen.append(told(tmp_path).phase)
        return graph

    model = torch.compile(torch.nn.Linear(2, 1), backend=backend, dynamic=False)
    one = Pulse(3, tmp_path)
    with compilation_shown(one):
        for size in (4, 4, 4, 4, 4, 3):
            one.enter(Phase.COMPUTING)
            model(torch.ones(size, 2))
            assert told(tmp_path).phase in (Phase.COMPUTING, Phase.WARMING_UP)
    model(torch.ones(2, 2))
    assert seen == [Phase.COMPILING, Phase.COMPILING, Phase.COMPUTING], "the last one after it was told to stop"
    one.close()


def test_a_rank_learns_how_long_its_steps_keep_the_interpreter(tmp_path: Path) -> None:
    keeps = ctypes.PyDLL(None).usleep  # unlike CDLL, with the interpreter's lock held
    one = Pulse(3, tmp_path)
    keeps(2_000_000)  # as imports do
    time.sleep(0.7)
    assert told(tmp_path).longest_silence == 0.0
    one.enter(Phase.COMPUTING)
    time.sleep(0.7)
    keeps(2_000_000)
    wait_for(lambda: told(tmp_path).longest_silence >= 1.9, "the silence", timeout=20)
    one.close()


def test_a_machine_that_slept_or_compiled_tells_nothing_of_how_long_steps_keep_the_interpreter() -> None:
    one = Pulse(3)
    one.close()  # its own beats would come in between
    one.enter(Phase.COMPUTING)
    one._learn_silence(21.0)
    one.compiles()
    one._learn_silence(19.0)
    one.has_compiled()
    one._learn_silence(19.0)
    assert one._longest_silence == 0.0
    one._learn_silence(19.0)
    one._learn_silence(37.0)
    assert one._longest_silence == 37.0, "up to twice the longest before"


def test_a_rank_beats_by_itself_and_takes_its_file_along(tmp_path: Path) -> None:
    one = Pulse(3, tmp_path)
    wait_for(lambda: told(tmp_path).beats >= 2, "two beats", timeout=20)
    assert told(tmp_path).pid == os.getpid()
    assert told(tmp_path).peak_bytes > 10**7
    one.close()
    assert read(tmp_path / "rank-3") is None


def test_attempts_and_runs_have_folders_of_their_own() -> None:
    folders = {pulse_folder(Path("/tmp"), *of) for of in (("/runs/a", 1), ("/runs/a", 2), ("/runs/b", 1))}
    assert len(folders) == 3


# -- the process


@pytest.mark.parametrize("how", ["stopped", "deadlocked"])
def test_a_real_process_that_hangs_is_killed_with_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(watchdog, "SILENT", 3.0)
    rank = subprocess.Popen(
        [sys.executable, "-P", "-c", HANGS, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert rank.stdout is not None
    assert rank.stdout.readline() == "ready\n"
    if how == "stopped":
        rank.send_signal(signal.SIGSTOP)
    standing, began = Watchdog(tmp_path, 2), time.monotonic()
    found: dict[int, tuple[Reading, str]] = {}
    last = began
    while not found and time.monotonic() < began + 20:
        time.sleep(watchdog.POLL)
        found = standing.look(time.monotonic() - last)
        last = time.monotonic()
    watchdog.end_rank(tmp_path, *found[1])
    _, printed = rank.communicate(timeout=10)
    assert rank.returncode == -signal.SIGKILL
    assert verdicts(tmp_path) == {1: found[1][1]}
    assert ("it froze" if how == "stopped" else "it hung: computing for 3 s") in found[1][1]
    assert ("in deadlock" in printed) == (how == "deadlocked"), "it prints where it hangs, if it can"


@pytest.mark.parametrize(("looks", "slept", "is_ended"), [(40, 0.0, True), (20, 3600.0, False)])
def test_a_machine_that_slept_has_ended_no_rank_that_slept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int, slept: float, is_ended: bool
) -> None:
    """A rank does not beat, for ten seconds of looks or for five; at one of them the machine had slept."""
    done, now = 0, 1000.0

    def sleep(seconds: float) -> None:
        nonlocal done, now
        done, now = done + 1, now + seconds + (slept if done == 4 else 0.0)

    ended: list[int] = []
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "getppid", lambda: 1 if done < looks else 2)
    monkeypatch.setattr(watchdog, "end_rank", lambda _folder, reading, _reason: ended.append(reading.pid))
    monkeypatch.setattr(watchdog, "tell", lambda *_: None)
    (tmp_path / "rank-0").write_bytes(RANK.packed())
    watchdog.main([str(tmp_path), "1", "1", ""])
    assert ended == [RANK.pid] * is_ended


def test_the_watchdog_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from trainers.watchdog import Keeper; "
    script += "print(Keeper(Path(sys.argv[1]), 1, 'elsewhere').process.pid, flush=True); sys.stdin.read()"
    folder = tmp_path / "pulse"
    folder.mkdir()
    command = [sys.executable, "-P", "-c", script, str(folder)]
    parent = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.communicate()
    wait_for(lambda: not _runs(pid), "the end of the watchdog", timeout=20)
    assert not folder.exists(), "where the driver is elsewhere, it takes its folder away"


def test_a_watchdog_that_is_killed_is_started_again(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, 1)
    first = keeper.process
    rank = Pulse(0, tmp_path, at_each_beat=keeper.look)
    first.kill()
    wait_for(lambda: keeper.process is not first, "another watchdog")
    assert _runs(keeper.process.pid)
    rank.close()
    keeper.close()
    assert not _runs(keeper.process.pid)


def _runs(pid: int) -> bool:
    try:
        return "trainers.watchdog" in Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return False


# -- what is left in the end


def test_the_last_rank_out_takes_the_folder_along(tmp_path: Path) -> None:
    folder = tmp_path / "pulse"
    folder.mkdir()
    ranks = [Pulse(rank, folder) for rank in (0, 1)]
    ranks[0].close()
    assert [path.name for path in folder.iterdir()] == ["rank-1"]
    ranks[1].close()
    assert not folder.exists()


def test_what_lost_ranks_left_goes_with_the_next_attempt(tmp_path: Path) -> None:
    for uri, attempt in (("runs/a", 1), ("runs/a", 2), ("runs/a", 3), ("runs/b", 1)):
        pulse_folder(tmp_path, uri, attempt).mkdir()
        (pulse_folder(tmp_path, uri, attempt) / "rank-1").touch()
    forget_attempts(tmp_path, "runs/a", up_to=2)
    left = {pulse_folder(tmp_path, "runs/a", 3), pulse_folder(tmp_path, "runs/b", 1)}
    assert set(tmp_path.iterdir()) == left
