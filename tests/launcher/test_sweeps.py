"""A sweep as people look at it, from a folder that was written by hand."""

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.attempts import Attempt
from cluster.errors import UsageError
from cluster.provider import State
from cluster.records import Result
from cluster.runs import Run
from cluster.trials import trial_run
from launcher.cli.status import status_command
from launcher.cli.trials import trials_command
from launcher.logs import print_logs
from launcher.spec import JobSpec, frozen, load
from launcher.status import next_steps, open_sweep, summarize
from launcher.submit import prepare
from launcher.sweep_display import LiveSweepDisplay, PlainSweepDisplay
from launcher.sweeps import read_sweep, short_names, summary_table, winner_of
from launcher.torch_command import find_model
from launcher.watch import Update
from launcher.yaml_source import parse
from tests.finished import DIGITS, new_run, write_rows
from tests.sweeps import HEAD, STORY, begun, elsewhere, ended, evaluated, searched
from trainers.tuning import lone_job


def write_sweep(folder: Path) -> tuple[Run, Attempt]:
    run = new_run(folder, "sweep", DIGITS + "tune: {trials: 8}\n")
    attempt = run.claim()
    elsewhere(attempt)
    write_rows(attempt, "events", STORY, by="driver")
    return run, attempt


def shown(table: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_sweep_counts_its_trials_and_knows_the_best(tmp_path: Path) -> None:
    run, _ = write_sweep(tmp_path)
    sweep = open_sweep(run)
    assert sweep.counts() == "3 of 8 trials done: 1 succeeded, 1 pruned, 1 failed; 1 running"
    assert sweep.best is not None
    assert sweep.best.id == "00001"
    told = sweep.as_dict()
    assert told["best"] == "00001"
    assert [trial["trial"] for trial in told["trials"]] == ["00001", "00000", "00002", "00003"]
    assert told["trials"][0]["value"] == 0.9
    assert told["trials"][0]["point"] == {"train.optimizer.lr": 0.1}


def test_a_status_shows_the_best_and_the_running_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = write_sweep(tmp_path)
    status_command(run.uri)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("trials       3 of 8 trials done") for line in lines)
    assert "best         00001  lr 0.1" in lines
    assert [line.split()[0] for line in lines if line[:5].isdigit()] == ["00001*", "00000", "00003"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_fits_the_screen_whatever_the_values(width: int) -> None:
    rows = [{**row, "point": {f"train.key{n}": "x" * 30 for n in range(9)}} if "point" in row else row for row in STORY]
    sweep = read_sweep(rows)
    assert sweep is not None
    lines = shown(summary_table(sweep, now=9.0), width).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= width
    assert lines[1].split()[:4] == ["00001*", "SUCCEEDED", "2", "0.9000"]


def test_brackets_in_values_are_shown_as_they_are() -> None:
    point = {"params.layers": ["relu", "[/a]"], "params.on": [True, False]}
    sweep = read_sweep([HEAD, {**begun(0), "point": point}, evaluated(0, 1, 0.5)])
    assert sweep is not None
    lines = shown(summary_table(sweep, now=9.0)).splitlines()
    assert lines[1].rstrip().endswith("layers [relu, [/a]]  on [true, false]")


@pytest.mark.parametrize("name", ["eval_mean_absolute_percentage_error", "eval_" + "x" * 60])
def test_a_metric_with_a_long_name_leaves_room_for_values(name: str) -> None:
    rows = [{**HEAD, "metric": name}, begun(0), {**evaluated(0, 1, 0.5), "metrics": {name: -123456.78}}]
    sweep = read_sweep(rows)
    assert sweep is not None
    lines = shown(summary_table(sweep, now=9.0), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[0] == "00000*"
    assert lines[1].rstrip().endswith("lr 0")
    assert "-123456" in lines[1]


def test_trials_are_listed_for_people_and_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = write_sweep(tmp_path)
    trials_command(run.uri, limit=100)
    out = capsys.readouterr().out
    assert "00002 failed: training diverged: the loss is nan at step 3" in out
    trials_command(run.uri, limit=2)
    assert "… and 2 more: --limit 4" in capsys.readouterr().out
    trials_command(run.uri, limit=100, json=True)
    assert json.loads(capsys.readouterr().out)["counts"] == {
        "running": 1,
        "waiting": 0,
        "succeeded": 1,
        "pruned": 1,
        "failed": 1,
        "stopped": 0,
    }


def test_the_best_trials_job_file_and_run_are_the_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = write_sweep(tmp_path)
    best = trial_run(run, "00001")
    best.create(DIGITS.encode())
    trials_command(run.uri, limit=100, best=True)
    assert parse(capsys.readouterr().out, "best").value["train"]["optimizer"] == {"name": "adam", "lr": 0.1}
    winner, by = winner_of(run)
    assert (winner.uri, by) == (best.uri, {"metric": "eval_accuracy", "mode": "max"})
    (tmp_path / "weights").write_bytes(b"weights")
    for step, accuracy, loss in ((4, 0.9, 2.0), (8, 0.5, 1.0)):
        info = {
            "metrics": {"eval_accuracy": accuracy, "eval_loss": loss},
            "best": {"metric": "eval_loss", "mode": "min"},
        }
        best.claim().commit(step, [tmp_path / "weights"], info)
    assert find_model(run.uri, None, None) == [best.uri, "--checkpoint", "4"], "the best by what the sweep goes by"
    assert find_model(run.uri, None, "last") == [best.uri, "--checkpoint", "last"]
    assert find_model(best.uri, None, None) == [best.uri, "--checkpoint", "last"]


def test_the_job_file_of_a_best_trial_that_went_on_from_another_has_the_values_that_it_came_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, attempt = write_sweep(tmp_path)
    copied = {"event": "trial.copied", "time": 4.0, "trial": "00001", "iteration": 1}
    origin = {"run": "00000", "attempt": 1, "step": 11}
    rows = [{**copied, "origin": origin, "point": {"train.optimizer.lr": 0.0375}}, evaluated(1, 2, 0.95)]
    write_rows(attempt, "events", rows, by="late")
    trials_command(run.uri, limit=100, best=True)
    job = parse(capsys.readouterr().out, "best").value
    assert job["train"]["optimizer"]["lr"] == 0.0375
    assert "tune" not in job


def test_a_run_without_trials_is_its_own_winner_and_no_sweep(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert winner_of(run) == (run, None)
    with pytest.raises(UsageError, match=r"has no trials: its job file has no tune: block\. See"):
        open_sweep(run)


def test_a_sweep_that_has_not_begun_is_one(tmp_path: Path) -> None:
    run = new_run(tmp_path, "sweep", DIGITS + "tune: {trials: 8}\n")
    with pytest.raises(UsageError, match=r"has no trials: it has not begun\. See"):
        open_sweep(run)


def test_where_all_trials_failed_the_table_has_them() -> None:
    sweep = read_sweep([{**HEAD, "trials": 1}, begun(0), ended(0, "FAILED")])
    assert sweep is not None
    assert "00000   FAILED" in shown(summary_table(sweep))
    assert sweep.counts() == "1 of 1 trial done: 1 failed"


def test_the_log_of_a_sweep_tells_of_every_trial_and_of_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, attempt = write_sweep(tmp_path)
    attempt.finish(Result(state="STOPPED", message="stopped from the keyboard; 4 trials are left to do", exit_code=4))
    assert print_logs(run)
    printed = [line.partition("  ")[2] or line for line in capsys.readouterr().out.splitlines()]
    assert printed[:2] == ["sweep: 8 trials for the maximum of eval_accuracy", "trial 00000: lr 0"]
    assert "trial 00001 succeeded" in printed
    assert "trial 00002 failed: training diverged: the loss is nan at step 3" in printed
    assert printed[-1] == "STOPPED: stopped from the keyboard; 4 trials are left to do"
    told = {"event": "finished", "time": 9.0, "state": "STOPPED", "message": "stopped"}
    write_rows(attempt, "events", [told], by="supervisor")
    assert print_logs(run)
    assert capsys.readouterr().out.count("STOPPED") == 1, "the event tells of it"


def test_a_sweep_without_a_result_has_no_winner(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    write_rows(run.claim(), "events", [HEAD, begun(0)], by="driver")
    with pytest.raises(UsageError, match=r"no trial of .* was evaluated yet"):
        winner_of(run)
    write_rows(Attempt.reopen(run, 1), "events", [evaluated(0, 1, math.nan), ended(0, "SUCCEEDED")], by="late")
    with pytest.raises(UsageError, match=r"no trial of .* has a finite eval_accuracy"):
        winner_of(run)


def test_a_summary_of_a_sweep_for_programs_has_its_trials_and_no_goodput(tmp_path: Path) -> None:
    run, attempt = write_sweep(tmp_path)
    attempt.finish(Result(state="SUCCEEDED", step=20, metrics={"eval_accuracy": 0.9}))
    summary = summarize(run)
    assert (summary.state, summary.goodput) == (State.SUCCEEDED, None)
    assert json.loads(json.dumps(summary.as_dict()))["sweep"]["best"] == "00001"
    assert next_steps(summary)[1] == f"its job file:    raylift trials {run.uri} --best"


def test_a_followed_sweep_prints_the_best_and_the_failed_and_no_flood() -> None:
    console = Console(file=io.StringIO(), width=200)
    display = PlainSweepDisplay(console, [])
    for row in STORY:
        display.show(Update("events", 1, row))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "sweep: 8 trials for the maximum of eval_accuracy",
        "trial 00000, epoch 1: accuracy 0.7000, the best so far  lr 0",
        "trial 00001, epoch 1: accuracy 0.8000, the best so far  lr 0.1",
        "trial 00001, epoch 2: accuracy 0.9000, the best so far  lr 0.1",
        "trial 00002 failed: training diverged: the loss is nan at step 3",
    ]


def test_a_resumed_sweep_knows_the_best_of_before() -> None:
    console = Console(file=io.StringIO(), width=200)
    display = PlainSweepDisplay(console, STORY)
    display.show(Update("events", 2, HEAD))
    display.show(Update("events", 2, evaluated(3, 1, 0.85)))
    assert isinstance(console.file, io.StringIO)
    assert "best so far" not in console.file.getvalue()


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["train.optimizer.lr", "train.optimizer.name", "train.schedule.name", "model.dropout"]) == {
        "train.optimizer.lr": "lr",
        "train.optimizer.name": "optimizer.name",
        "train.schedule.name": "schedule.name",
        "model.dropout": "dropout",
    }
    assert short_names(["a.b.c", "x.b.c"]) == {"a.b.c": "a.b.c", "x.b.c": "x.b.c"}


# -- what stands still, and what is many


def test_a_trial_of_a_sweep_whose_processes_are_gone_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path)
    write_rows(run.claim(), "events", [HEAD, begun(0), evaluated(0, 1, 0.5), begun(1)], by="driver")
    sweep = open_sweep(run)
    assert sweep.counts() == "0 of 8 trials done; 2 stopped"
    status_command(run.uri)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("0000")]
    assert [line.split()[:4] for line in table] == [["00000*", "STOPPED", "1", "0.5000"]]


def test_a_trial_that_was_stopped_and_goes_on_runs() -> None:
    sweep = read_sweep([HEAD, begun(0), evaluated(0, 1, 0.5), ended(0, "STOPPED"), HEAD, evaluated(0, 2, 0.6)])
    assert sweep is not None
    assert [(trial.state, trial.ended) for trial in sweep.trials] == [("RUNNING", None)]


def test_a_status_of_many_running_trials_fits_the_screen() -> None:
    sweep = read_sweep([HEAD, *(begun(number) for number in range(100)), evaluated(3, 1, 0.5)])
    assert sweep is not None
    lines = shown(summary_table(sweep, now=9.0)).splitlines()
    assert len(lines) == 12
    assert len(shown(summary_table(sweep, now=9.0, running=3)).splitlines()) == 5


def test_a_live_table_leaves_room_for_the_counts_on_a_small_terminal() -> None:
    console = Console(file=io.StringIO(), width=70, height=14, force_terminal=True)
    display = LiveSweepDisplay(console, [])
    for row in [HEAD, *(begun(number) for number in range(60)), *(evaluated(number, 1, 0.5) for number in range(9))]:
        display.show(Update("events", 1, row))
    lines = shown(display._table(), 70).splitlines()
    assert len(lines) <= 13
    assert lines[-1] == "0 of 8 trials done; 60 running"


def test_thousands_of_trials_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path)
    rows = [row for number in range(2000) for row in (begun(number), evaluated(number, 1, number / 1e4))]
    write_rows(run.claim(), "events", [HEAD, *rows], by="driver")
    started = time.process_time()
    trials_command(run.uri, limit=2000)
    assert time.process_time() - started < 8
    assert capsys.readouterr().out.count("STOPPED") == 2000


def test_the_reasons_of_many_failed_trials_are_not_all_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path)
    rows = [row for number in range(8) for row in (begun(number), {**ended(number, "FAILED"), "message": "[no] way"})]
    write_rows(run.claim(), "events", [HEAD, *rows], by="driver")
    trials_command(run.uri, limit=100)
    out = capsys.readouterr().out
    assert out.count("failed: [no] way") == 5
    assert "… and 3 more failed: --json has all reasons" in out


def test_the_best_trials_job_file_loads_as_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = searched(tmp_path, 12)
    winner = open_sweep(run).best
    assert winner is not None
    trials_command(run.uri, limit=100, best=True)
    printed = capsys.readouterr().out
    assert printed.startswith(f"# trial {winner.id} of {run.uri}: eval_accuracy 0.9")
    assert "# run" not in printed
    (tmp_path / "best.yaml").write_text(printed)
    job = load(tmp_path / "best.yaml").spec
    assert job.tune is None
    assert job.train.optimizer.lr == winner.point["train.optimizer.lr"]
    whole = lone_job(parse(run.job().decode(), "job").value, winner.point)
    assert frozen(job) == frozen(JobSpec.model_validate(whole)), "nothing is lost with what is so by default"
    assert "null" not in printed
    assert "name: searched" in printed
    trials_command(run.uri, limit=100, best=True, json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["trial"], told["uri"], told["job"]) == (winner.id, trial_run(run, winner.id).uri, printed)


@pytest.mark.parametrize(
    ("cluster", "counted"),
    [
        ("{provider: local, workers: {min: 1, max: 4}}", {"workers": 2}),
        (
            '{provider: local, address: "there:6379", accelerators: "GPU:4", nodes: 2}',
            {"accelerators": "GPU:2", "nodes": 1},
        ),
        (
            "{provider: kubernetes, storage_secret: s3, accelerators: L4, nodes: {min: 0, max: 8}}",
            {"accelerators": "L4:1", "nodes": 2},
        ),
        ("{provider: kubernetes, workers: 6}", {"workers": 2}),
    ],
)
def test_the_best_trials_job_file_names_the_sweeps_own_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: str, counted: dict[str, Any]
) -> None:
    tune = "{trials: 2, workers_per_trial: 2, search: random, space: {train.optimizer.lr: [0.1, 0.2]}}"
    file = tmp_path / "job.yaml"
    file.write_text(f"{DIGITS}cluster: {cluster}\nstorage: s3://a/b\ntune: {tune}\n")
    loaded = load(file)
    run = new_run(tmp_path, "sweep", prepare(loaded).document.decode())
    write_rows(run.claim(), "events", STORY, by="driver")
    trials_command(run.uri, limit=100, best=True)
    (tmp_path / "best.yaml").write_text(capsys.readouterr().out)
    job = load(tmp_path / "best.yaml").spec
    assert job.tune is None
    assert job.cluster.model_dump() == {**loaded.spec.cluster.model_dump(), **counted}
