"""What the report of a sweep shows, from sweeps that were searched for real and trained by nobody."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import importance
from launcher.history import gather
from launcher.importance import Importance, assess
from launcher.parallel import build_parallel
from launcher.report import render
from launcher.spec import JobSpec
from launcher.sweep_charts import budget_of, draw
from launcher.sweeps import Sweep, read_sweep
from tests.finished import DIGITS, new_run, write_rows
from tests.sweeps import HEAD, STORY, begun, ended, evaluated, searched
from trainers.tuning import Domain, Scheduler


def opened(folder: Path, count: int, **how: Any) -> tuple[Sweep, JobSpec, dict[str, Domain]]:
    run, _ = searched(folder, count, **how)
    data = gather(run)
    assert data.sweep is not None
    assert data.spec is not None
    assert data.spec.tune is not None
    return data.sweep, data.spec, data.spec.tune.ordered


def told(*rows: dict[str, Any]) -> Sweep:
    sweep = read_sweep([HEAD, *rows])
    assert sweep is not None
    return sweep


# -- charts


def test_the_best_trials_curve_is_drawn_by_itself_and_the_others_together() -> None:
    learning = draw(told(*STORY[1:]), None).charts[1]
    assert [(series.name, list(series.x), list(series.y)) for series in learning.series] == [
        ("ended early", [1, 1], [0.7, None]),
        ("best, 00001", [1, 2], [0.8, 0.9]),
    ]


def test_the_history_is_of_trials_that_were_trained_to_their_end() -> None:
    rows = [begun(0), evaluated(0, 1, 0.95), ended(0, "PRUNED")]
    for number, value in ((1, 0.8), (2, 0.7), (3, 0.9)):
        rows += [begun(number), evaluated(number, 1, value), ended(number, "SUCCEEDED")]
    history = draw(told(*rows), None).charts[0]
    assert [(series.name, list(series.x), list(series.y)) for series in history.series] == [
        ("ended early", [0], [0.95]),
        ("to the end", [1, 2, 3], [0.8, 0.7, 0.9]),
        ("best so far", [1, 2, 3, 3], [0.8, 0.8, 0.9, 0.9]),
    ]


def test_the_history_of_repeats_leaves_out_the_mean_of_a_point_of_which_one_failed() -> None:
    rows = []
    for number, repeat, value, state in ((0, 0, 0.95, "SUCCEEDED"), (0, 1, 0.1, "FAILED"), (1, 0, 0.9, "SUCCEEDED")):
        of = {"trial": f"{number:05d}-{repeat}", "repeat": repeat}
        rows += [{**row, **of} for row in (begun(number), evaluated(number, 1, value), ended(number, state))]
    sweep = told(*rows, {**begun(1), "trial": "00001-1", "repeat": 1})
    assert sweep.best is not None
    best = draw(sweep, None).charts[0].series[-1]
    assert (sweep.best.id, best.name, {*best.y}) == ("00001-0", "best mean so far", {0.9})


def test_trials_that_are_evaluated_more_than_once_an_epoch_are_drawn_by_step() -> None:
    rows = [begun(0), evaluated(0, 1, 0.7), {**evaluated(0, 2, 0.8), "epoch": 1}]
    assert draw(told(*rows), None).charts[1].x == "step"


def test_a_value_that_is_no_number_is_a_gap_and_never_the_best(tmp_path: Path) -> None:
    run = new_run(tmp_path, "sweep", DIGITS + "tune: {trials: 8}\n")
    rows = [begun(0), evaluated(0, 1, 0.5), evaluated(0, 2, math.nan), begun(1), evaluated(1, 1, 0.4)]
    write_rows(run.claim(), "events", [HEAD, *rows], by="driver")
    data = gather(run)
    assert data.sweep is not None
    assert data.sweep.best is not None
    assert data.sweep.best.id == "00001"
    assert "NaN" not in render(data).partition('id="curves-data"')[2].partition("</script>")[0]


def test_a_loss_that_spans_orders_of_magnitude_is_drawn_on_a_logarithmic_scale(tmp_path: Path) -> None:
    sweep, spec, _ = opened(tmp_path, 30, metric="eval_loss")
    assert [chart.logarithmic for chart in draw(sweep, spec).charts[:2]] == [True, True]
    run, _ = searched(tmp_path, 31, metric="eval_loss")
    assert 'data-chart="0" checked>' in render(gather(run))


def test_points_of_several_seeds_go_by_their_mean(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number, values in ((0, (0.5, 0.9)), (1, (0.8, 0.8))):
        for repeat, value in enumerate(values):
            name = {"trial": f"{number:05d}-{repeat}"}
            rows += [{**begun(number), **name, "repeat": repeat}, {**evaluated(number, 1, value), **name}]
            rows.append({**ended(number, "SUCCEEDED"), **name})
    sweep = told(*rows)
    history = draw(sweep, None).charts[0].series[-1]
    assert (history.name, list(history.y)) == ("best mean so far", [0.7, 0.7, 0.8, 0.8, 0.8])
    run = new_run(tmp_path, "sweep", DIGITS + "tune: {trials: 2, repeats: 2}\n")
    write_rows(run.claim(), "events", [HEAD, *rows], by="driver")
    page = render(gather(run))
    assert "accuracy, best mean of 2 seeds" in page
    assert "<td>0.7000</td><td>0.9000</td>" in page


# -- what ending early saved


def test_ending_early_saves_the_epochs_up_to_those_of_the_job(tmp_path: Path) -> None:
    sweep, spec, _ = opened(tmp_path, 20)
    pruned = [trial for trial in sweep.trials if trial.state == "PRUNED"]
    assert pruned
    budget = budget_of(sweep, spec)
    assert budget.saved == sum(9 - trial.epoch for trial in pruned)
    assert budget.trained == sum(trial.epoch for trial in sweep.trials)
    reached = draw(sweep, spec).charts[-1]
    without, had = (sum(int(value or 0) for value in series.y) for series in reached.series)
    assert (without - had, had) == (budget.saved, budget.trained)


def test_a_trial_is_as_long_as_its_own_epochs_say() -> None:
    rows = [begun(0), evaluated(0, 1, 0.5), ended(0, "PRUNED", at=3.0), begun(1), evaluated(1, 1, 0.6)]
    rows[0]["point"] = {"train.epochs": 5}
    budget = budget_of(told(*rows), None)
    assert (budget.trained, budget.saved) == (2, 4)
    assert budget.seconds == pytest.approx(8.0)
    assert budget.share == pytest.approx(4 / 6)


def test_a_trial_would_have_had_no_more_epochs_than_the_longest_where_the_scheduler_says_how_many(
    tmp_path: Path,
) -> None:
    rows = [begun(0), evaluated(0, 1, 0.5), ended(0, "PRUNED"), begun(1), *(evaluated(1, at, 0.6) for at in (1, 2, 3))]
    _, spec, _ = opened(tmp_path, 2)
    assert spec.tune is not None
    scheduler = Scheduler.model_validate({"name": "asha", "max_t": 3})
    limited = spec.model_copy(update={"tune": spec.tune.model_copy(update={"scheduler": scheduler})})
    assert (budget_of(told(*rows), spec).saved, budget_of(told(*rows), limited).saved) == (8, 2)


@pytest.mark.parametrize("key", ["train.max_steps", "model.dropout"])
def test_a_trial_of_so_many_steps_would_have_had_no_more_epochs_than_the_longest(tmp_path: Path, key: str) -> None:
    rows = [begun(0), evaluated(0, 1, 0.5), ended(0, "PRUNED"), begun(1), evaluated(1, 1, 0.6), evaluated(1, 2, 0.7)]
    for row in rows[::3]:
        row["point"] = {key: 46}
    _, spec, _ = opened(tmp_path, 2)
    assert budget_of(told(*rows), spec).saved == (1 if key == "train.max_steps" else 8)


def test_what_the_start_of_a_trial_took_is_no_time_of_its_epochs() -> None:
    """Epochs of the second trial took 2 s each; of the first there is one evaluation, after a start of 14 s."""
    rows = [
        *(begun(0), evaluated(0, 1, 0.5, at=15.0), ended(0, "PRUNED", at=15.0)),
        *(begun(1, at=15.0), evaluated(1, 1, 0.6, at=20.0), evaluated(1, 3, 0.7, at=24.0), ended(1, "PRUNED", at=24.0)),
    ]
    for row in rows:
        if row["event"] == "trial":
            row["point"] = {"train.epochs": 10}
    budget = budget_of(told(*rows), None)
    assert budget.saved == 9 + 7
    assert budget.seconds == pytest.approx(2.0 * (9 + 7))


def test_when_a_resume_found_evaluations_is_no_time_of_epochs() -> None:
    rows = [
        *(begun(0), evaluated(0, 1, 0.5, at=10.0), evaluated(0, 2, 0.5, at=20.0)),
        *({**evaluated(0, epoch, 0.5, at=100.0), "missed": True} for epoch in (3, 4)),
        *(evaluated(0, 5, 0.5, at=170.0), evaluated(0, 6, 0.5, at=180.0), ended(0, "PRUNED", at=180.0)),
    ]
    rows = [{**row, "attempt": 1 if row["time"] < 100 else 2} for row in rows]
    (trial,) = told(*rows).trials
    assert trial.pace == pytest.approx(10.0)


def test_where_no_trial_was_ended_early_nothing_is_said_to_be_saved(tmp_path: Path) -> None:
    run = new_run(tmp_path, "sweep", DIGITS + "tune: {trials: 8}\n")
    write_rows(run.claim(), "events", [HEAD, begun(0), evaluated(0, 1, 0.5), ended(0, "SUCCEEDED")], by="driver")
    assert "early" not in render(gather(run))


# -- importance


def test_the_key_that_decides_is_told_from_those_that_do_not(tmp_path: Path) -> None:
    sweep, _, space = opened(tmp_path, 60)
    found = assess(sweep, space)
    assert isinstance(found, Importance)
    assert next(iter(found.shares)) == "train.optimizer.lr"
    assert found.shares["train.optimizer.lr"] > 0.5
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert set(found.shares) == set(space)
    assert "train.optimizer.lr" not in found.by_chance
    assert len(found.by_chance) >= 4


def test_where_no_key_decides_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = searched(tmp_path, 12)
    monkeypatch.setattr(importance, "_by_chance", lambda _, found, *__: frozenset(found))
    assert "No key stands out from chance." in render(gather(run))


def test_a_point_of_several_seeds_counts_once(tmp_path: Path) -> None:
    sweep, _, space = opened(tmp_path, 12)
    twice = [*sweep.trials, *(replace(trial, id=f"{trial.id}-1", repeat=1) for trial in sweep.trials)]
    found = assess(replace(sweep, trials=twice), space)
    assert isinstance(found, Importance)
    assert found.trials == 12


def test_a_report_of_few_trials_says_that_they_are_too_few(tmp_path: Path) -> None:
    run, _ = searched(tmp_path, 8)
    assert "With 8 trials nothing can be said of it yet: it takes 10 at least." in render(gather(run))


def test_a_report_without_optuna_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, _, space = opened(tmp_path, 12)
    monkeypatch.setattr(importance, "find_spec", lambda _: None)
    found = assess(sweep, space)
    assert isinstance(found, str)
    assert "pip install 'raylift[train]'" in found


def test_one_key_alone_has_no_importance(tmp_path: Path) -> None:
    sweep, _, space = opened(tmp_path, 12)
    found = assess(sweep, {"train.optimizer.lr": space["train.optimizer.lr"]})
    assert found == "There is one key alone, so there is nothing to compare."


# -- parallel coordinates


def test_every_trial_crosses_the_axes_of_its_own_keys_alone(tmp_path: Path) -> None:
    sweep, _, space = opened(tmp_path, 40)
    drawn = build_parallel(sweep, space, ["train.optimizer.lr"])
    assert drawn is not None
    names = [axis.name for axis in drawn.axes]
    assert names[-3:] == ["lr", "epochs", "accuracy"]
    lr, momentum = names.index("lr"), names.index("momentum")
    points = {trial.id: trial.point for trial in sweep.trials}
    for line in drawn.lines:
        point = points[line.trial]
        assert line.places[lr] == pytest.approx((math.log10(point["train.optimizer.lr"]) + 4) / 3)
        assert (line.places[momentum] is not None) == (point["train.optimizer.name"] == "sgd")
        assert all(0 <= place <= 1 for place in line.places if place is not None)
    assert {line.trial for line in drawn.lines} == set(points)
    failed = {trial.id for trial in sweep.trials if trial.state == "FAILED"}
    assert failed
    assert {line.trial for line in drawn.lines if line.rank is None} == failed
    assert all((line.places[-1] is None) == (line.trial in failed) for line in drawn.lines)
    assert sweep.best is not None
    assert [line.trial for line in drawn.lines if line.rank == 1] == [sweep.best.id]


def test_axes_have_the_values_of_the_space_and_powers_of_ten(tmp_path: Path) -> None:
    sweep, _, space = opened(tmp_path, 20)
    drawn = build_parallel(sweep, space)
    assert drawn is not None
    ticks = {axis.name: [text for _, text in axis.ticks] for axis in drawn.axes}
    assert ticks["lr"] == ["0.0001", "0.001", "0.01", "0.1"]
    assert ticks["optimizer.name"] == ["adamw", "sgd", "muon"]
    assert ticks["schedule"] == ["constant", "{name: cosine, wa…"]
    assert ticks["flip"] == ["true", "false"]
    assert ticks["dropout"] == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]


def test_without_the_space_the_axes_are_those_of_the_values_that_were_tried(tmp_path: Path) -> None:
    sweep, _, _ = opened(tmp_path, 20)
    drawn = build_parallel(sweep, {})
    assert drawn is not None
    assert len(drawn.axes) == 9
    assert all(0 <= place <= 1 for line in drawn.lines for place in line.places if place is not None)


def test_a_value_outside_of_its_range_is_drawn_at_its_end() -> None:
    rows = [begun(0), evaluated(0, 1, 0.5), begun(9), evaluated(9, 1, 0.6)]
    drawn = build_parallel(told(*rows), {"train.optimizer.lr": Domain(uniform=(0.1, 0.5))})
    assert drawn is not None
    assert [line.places[0] for line in drawn.lines] == [0.0, 1.0]


def test_a_multiple_that_is_off_by_a_rounding_has_its_place() -> None:
    rows = [begun(0), evaluated(0, 1, 0.5), begun(1), evaluated(1, 1, 0.6)]
    rows[0]["point"], rows[2]["point"] = {"model.dropout": 0.30000000000000004}, {"model.dropout": 0.0}
    drawn = build_parallel(told(*rows), {"model.dropout": Domain(quniform=(0, 0.5, 0.1))})
    assert drawn is not None
    assert [line.places[0] for line in drawn.lines] == [pytest.approx(0.6), 0.0]
    assert len(drawn.axes[0].ticks) == 6


def test_many_listed_numbers_have_one_scale_in_their_order() -> None:
    rows = [begun(0), evaluated(0, 1, 0.5), begun(1), evaluated(1, 1, 0.6)]
    rows[0]["point"], rows[2]["point"] = {"train.batch_size": 20}, {"train.batch_size": 5}
    drawn = build_parallel(told(*rows), {"train.batch_size": Domain(choice=[*range(10, 31), *range(10)])})
    assert drawn is not None
    assert [line.places[0] for line in drawn.lines] == [pytest.approx(20 / 30), pytest.approx(5 / 30)]


def test_of_very_many_trials_the_best_are_drawn(tmp_path: Path) -> None:
    sweep, _, space = opened(tmp_path, 1100)
    drawn = build_parallel(sweep, space)
    assert drawn is not None
    assert (len(drawn.lines), drawn.left_out) == (1000, 100)
    assert drawn.lines[-1].rank == 1


def test_what_a_value_says_is_no_markup_of_the_page(tmp_path: Path) -> None:
    row = {**begun(0), "point": {"model.name": "<img src=x>", "train.optimizer.name": "</script><b>"}}
    run = new_run(tmp_path, "sweep", DIGITS + "tune: {trials: 8}\n")
    write_rows(run.claim(), "events", [HEAD, row, evaluated(0, 1, 0.5)], by="driver")
    page = render(gather(run))
    assert "<img" not in page.partition("<main>")[2].partition("</main>")[0]
    assert "</script><b>" not in page
    drawing = draw(told(row, evaluated(0, 1, 0.5)), None)
    assert drawing.parallel is not None
    assert "&lt;img" in drawing.parallel.lines[0].text
    assert all("<img" not in text for chart in drawing.charts for series in chart.series for text in series.text)


# -- the page


def test_a_report_of_a_sweep_tells_its_best_and_how_to_get_it(tmp_path: Path) -> None:
    run, _ = searched(tmp_path, 40)
    page = render(gather(run))
    assert "Where the time went" not in page
    assert f"raylift trials {run.uri} --best" in page
    assert "training diverged: the loss is nan at step 30" in page
    assert "search: random, scheduler: asha" in page


def test_a_report_of_a_sweep_without_an_evaluation_says_so(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    write_rows(run.claim(), "events", [HEAD, begun(0)], by="driver")
    assert "No trial " in render(gather(run))


def test_trials_of_a_sweep_that_runs_no_more_are_stopped(tmp_path: Path) -> None:
    sweep, _, _ = opened(tmp_path, 10)
    assert [trial.id for trial in sweep.trials if trial.state == "STOPPED"] == ["00007", "00008", "00009"]
    assert sweep.running == []
