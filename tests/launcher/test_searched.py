"""The space of a sweep against the job file: what it makes of a right one, and what it says of a wrong one."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from launcher.cli.plan import plan_command
from launcher.mistakes import JobFileError
from launcher.spec import JobSpec, frozen, load, load_frozen
from trainers.tuning import Tune, lone_job, metric_of, trial_job

pytestmark = pytest.mark.usefixtures("home")

Job = Callable[..., Path]
WRONG_SPACE = """\
tune:
  space:
    train.optimizer.name: [sgd, adamww]
    train.optimiser.lr: {loguniform: [1e-5, 1e-1]}
    train.optimizer.lr: {uniform: [0, 1]}
    lr: [0.1]
    cluster.workers: [1, 2]
    train.batch_size:
      randint: [0, 8]
    data.augment.rotate: {uniform: [0, 181]}
    train.max_failures: [1, 2]
"""


def tune_of(path: Path) -> Tune:
    tune = load(path).spec.tune
    assert tune is not None
    return tune


def messages(path: Path) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        load(path)
    return [str(mistake) for mistake in caught.value.mistakes]


@pytest.mark.parametrize("block", ["tune: {trials: 20}", "tune: {}", "tune:"])
def test_a_sweep_that_says_nothing_searches_optimizer_rate_and_decay_by_tpe_and_asha(job: Job, block: str) -> None:
    tune = tune_of(job(block))
    assert list(tune.ordered) == [
        "train.optimizer.name",
        "train.optimizer.lr",
        "train.optimizer.weight_decay",
        "train.optimizer.momentum",
    ]
    assert (tune.search.name, tune.scheduler.name, tune.tried) == ("tpe", "asha", 20)
    assert metric_of(tune, "image-classification") == ("eval_accuracy", "max")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("{betas: [0.9, 0.95]}", ["adamw"]),
        ("{name: sgd, momentum: 0.8}", ["sgd", "muon"]),
        ("sgd", ["adamw", "sgd", "muon"]),
    ],
)
def test_the_default_space_has_the_optimizers_that_take_the_options_given(
    job: Job, options: str, names: list[str]
) -> None:
    assert tune_of(job(f"train: {{optimizer: {options}}}\ntune:\n")).ordered["train.optimizer.name"].values == names


def test_a_sweep_frozen_reads_back_equal(job: Job) -> None:
    loaded = load(job("tune:\n"))
    stream = BytesIO()
    YAML(typ="safe", pure=True).dump(loaded.document, stream)
    assert load_frozen(stream.getvalue()) == loaded.spec


def test_every_key_and_value_of_a_space_is_checked_with_its_place(job: Job) -> None:
    assert [message.split(", rmsprop")[0] for message in messages(job(WRONG_SPACE))] == [
        "job.yaml:5:33: train.optimizer.name: 'adamww' is not a choice here; the choices: sgd, adam, adamw, adagrad",
        "job.yaml:6:5: tune.space.train.optimiser.lr: the job file has no such key; did you mean train.optimizer.lr?",
        "job.yaml:7:36: train.optimizer.lr: 0.0 is out of range: it must be above 0",
        "job.yaml:8:5: tune.space.lr: the job file has no such key; did you mean train.optimizer.lr?",
        "job.yaml:9:5: tune.space.cluster.workers: a space names keys inside model, data, train, params; this one "
        "cannot change from trial to trial",
        "job.yaml:11:17: train.batch_size: 0 is out of range: it must be at least 1",
        "job.yaml:12:40: data.augment.rotate: 181.0 is out of range: it must be at most 180",
        "job.yaml:13:5: tune.space.train.max_failures: train.max_failures counts for the sweep as a whole: say it "
        "outside of the space",
    ]


@pytest.mark.parametrize(
    ("key", "domain", "message"),
    [
        ("train.batch_size", "{loguniform: [16, 256]}", "job.yaml:3:35: train.batch_size: 136.5 is not a whole number"),
        ("train.epochs", "{uniform: [1, 9]}", "train.epochs: 5.5 is not a whole number"),
        ("train.epochs", "{quniform: [1, 8, 0.5]}", "train.epochs: 4.5 is not a whole number"),
        ("train.schedule.warmup", "{uniform: [0, 100]}", "warmup 50.5 is neither a share below 1 nor a whole number"),
        (
            "train.schedule.warmup",
            "{quniform: [0, 4, 0.5]}",
            "warmup 2.5 is neither a share below 1 nor a whole number",
        ),
        (
            "train.schedule.warmup",
            "{quniform: [0, 9, 0.2]}",
            "warmup 4.6 is neither a share below 1 nor a whole number",
        ),
        ("model.dropout", "{quniform: [0, 1.2, 0.3]}", "model.dropout: 1.2 is out of range: it must be below 1"),
    ],
)
def test_what_lies_between_the_ends_of_a_range_is_checked_too(job: Job, key: str, domain: str, message: str) -> None:
    (found,) = messages(job(f"tune: {{space: {{{key}: {domain}}}}}"))
    assert message in found


@pytest.mark.parametrize(
    "space",
    [
        "model.dropout: {quniform: [0, 1, 0.3]}",  # its largest value is 0.9
        "train.epochs: {quniform: [1, 8, 2]}",
        "train.optimizer.lr: {loguniform: [1e-5, 1e-1]}",
    ],
)
def test_no_value_is_refused_that_a_range_does_not_have(job: Job, space: str) -> None:
    assert tune_of(job(f"tune: {{space: {{{space}}}}}"))


def test_values_that_do_not_go_together_are_found_where_the_job_file_would_refuse_them(job: Job) -> None:
    space = "tune: {space: {train.optimizer.name: [sgd, adamw], train.optimizer.momentum: {uniform: [0.8, 0.9]}}}"
    found = messages(job(space))
    assert len(found) == 1
    assert "train.optimizer.momentum: momentum is an option of sgd, rmsprop, muon, not of adamw" in found[0]
    assert tune_of(job(space.replace("0.9]", "0.9], when: {train.optimizer.name: sgd}")))


def test_every_pair_of_values_is_checked_where_there_are_too_many_combinations_to_try(job: Job) -> None:
    keys = {f"data.augment.{key}": [0, value] for key, value in (("rotate", 5), ("translate", 0.1), ("noise", 0.1))}
    keys |= {"train.batch_size": [32, 64], "train.seed": [1, 2], "train.epochs": [1, 2], "model.dropout": [0, 0.1]}
    space = {"train.optimizer.name": ["sgd", "adamw"], **keys, "train.clip_norm": [1, 2]}
    space["train.optimizer.momentum"] = [None, 0.9]
    found = messages(job(f"tune: {{trials: 400, space: {json.dumps(space)}}}"))
    assert len(found) == 1
    assert "train.optimizer.momentum: momentum is an option of sgd, rmsprop, muon, not of adamw" in found[0]


def test_the_values_of_a_large_space_with_conditions_are_checked_without_all_its_combinations(job: Job) -> None:
    many = list(range(1, 21))
    shares = [number / 100 for number in range(20)]
    space: dict[str, object] = {"train.optimizer.name": ["adamw", "sgd"], "train.seed": many, "train.clip_norm": many}
    space |= {f"data.augment.{key}": shares for key in ("translate", "noise", "mixup", "cutmix")}
    space |= {
        "model.dropout": shares,
        "train.optimizer.momentum": {"choice": [0.9, 1.9], "when": {"train.optimizer.name": "sgd"}},
    }
    found = messages(job(f"tune: {{trials: 400, space: {json.dumps(space)}}}"))
    assert len(found) == 1
    assert found[0].endswith("train.optimizer.momentum: 1.9 is out of range: it must be below 1")


def test_searched_data_is_found_from_the_folder_of_the_job_file(
    job: Job, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "a").mkdir()
    (home / "elsewhere").mkdir()
    space = "{data.train: [./a, builtin:digits], train.epochs: {choice: [1, 2], when: {data.train: ./a}}}"
    path = home / job(f"tune: {{space: {space}}}")
    monkeypatch.chdir(home / "elsewhere")
    points = list(tune_of(path).points())
    assert [point["data.train"] for point in points] == [str(home / "a")] * 2 + ["builtin:digits"]


def test_searched_data_that_is_not_there_is_missed_at_once(job: Job) -> None:
    space = "{data.train: {choice: [builtin:digitz]}, data.eval: [./nowhere, {split: 0.2}]}"
    found = messages(job(f"tune: {{space: {space}}}"))
    assert [message.split(";")[0] for message in found] == [
        "job.yaml:3:38: data.train: there is no builtin:digitz",
        "job.yaml:3:68: data.eval: ./nowhere does not exist",
    ]


def test_a_key_of_a_block_may_be_searched_with_the_values_of_the_block_that_have_room_for_it(job: Job) -> None:
    blocks = "train.early_stopping: [null, {patience: 3}]"
    inner = "train.early_stopping.patience: {choice: [1, 2], when: {train.early_stopping: {patience: 3}}}"
    points = list(tune_of(job(f"tune: {{space: {{{blocks}, {inner}}}}}")).points())
    assert [point.get("train.early_stopping.patience") for point in points] == [None, 1, 2]
    assert tune_of(job("tune: {space: {train.optimizer: [sgd, {name: adamw}], train.optimizer.lr: [0.1, 0.2]}}"))


def test_two_ranges_are_checked_at_their_upper_ends_together(job: Job) -> None:
    space = "tune: {space: {data.augment.mixup: {uniform: [0, 1]}, data.augment.cutmix: {uniform: [0, 1]}}}"
    found = messages(job(f"train: {{batch_size: 1}}\n{space}"))
    assert found
    assert all("mixup and cutmix need train.batch_size of 2 or more" in message for message in found)


def test_blocks_may_be_searched_as_a_whole(job: Job) -> None:
    assert tune_of(job("tune: {space: {train.optimizer: [adamw, {name: sgd, lr: 0.1, momentum: 0.9}]}}")).tried == 2
    found = messages(job("tune: {space: {train.optimizer: [adamw, {name: sgd, momentumm: 0.9}]}}"))
    assert "unknown key; did you mean momentum?" in found[0]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{metric: eval_acuracy}", "job.yaml:3:16: tune.metric: image-classification has no 'eval_acuracy'; it has"),
        ("{search: tep}", "tune.search.name: 'tep' is not a choice here"),
        ("{search: grid}", "tune.search: grid takes lists, and train.optimizer.lr is a range: loguniform."),
        ("{scheduler: {name: median, brackets: 2}}", "tune.scheduler.brackets: brackets is an option of asha, not of"),
        (
            "{scheduler: {name: asha, grace_period: 5, max_t: 3}}",
            "tune.scheduler.grace_period: 5 is longer than max_t, 3",
        ),
        ("{space: {train.optimizer.lr: {}}}", "give one of choice, grid, uniform"),
        ("{space: {train.optimizer.lr: {uniform: [0.1, 0.2], choice: [1]}}}", "not choice and uniform"),
        (
            "{space: {train.optimizer.lr: {grid: [0.1]}}}",
            "search: tpe takes no grid, as train.optimizer.lr is: write choice",
        ),
        ("{space: {model.dropout: {quniform: [0.11, 0.14, 0.1]}}}", "no multiple of 0.1 lies from 0.11 to 0.14"),
        ("{space: {train.epochs: {choice: [1], when: {model.name: cnn}}}}", "which is no other key of the space"),
        (
            "{space: {train.epochs: {choice: [1], when: {model.name: rnn}}, model.name: [cnn]}}",
            "tune.space.train.epochs: it counts when model.name is rnn, which it never is: cnn",
        ),
        (
            "{space: {train.epochs: {choice: [1], when: {model.nam: cnn}}, model.name: [cnn]}}",
            "which is no other key of the space: model.name; did you mean model.name?",
        ),
        (
            "{space: {train.epochs: {choice: [1], when: {model.name: cmn}}, model.name: [cnn]}}",
            "it counts when model.name is cmn, which it never is: cnn; did you mean cnn?",
        ),
        (
            "{space: {train.epochs: {choice: [1], when: {train.seed: 1}}, train.seed: {choice: [1], "
            "when: {train.epochs: 1}}}}",
            "depend on each other in a circle",
        ),
        (
            "{space: {train.epochs: {choice: [1], when: {model.name: []}}, model.name: [cnn]}}",
            "tune.space.train.epochs: it counts when model.name is one of none: name a value, or several",
        ),
        (
            "{space: {train.eval_every.count: [1, 2]}}",
            "tune.space.train.eval_every.count: search train.eval_every itself: [1 epoch, 2 epochs]",
        ),
        (
            "{space: {checkpoint.every.count: [1, 2]}}",
            "tune.space.checkpoint.every.count: a space names keys inside model, data, train, params; this one cannot",
        ),
        (
            "{space: {train.early_stopping: [null, {patience: 3}], train.early_stopping.patience: [1, 2]}}",
            "job.yaml:3:39: tune.space.train.early_stopping.0: it would be lost where train.early_stopping.patience "
            "has a value: say by its `when` with which train.early_stopping that counts",
        ),
        (
            "{space: {data.eval: [builtin:digits, {split: 0.1}], data.eval.split: [0.2, 0.3]}}",
            "tune.space.data.eval.0: it would be lost where data.eval.split has a value",
        ),
        ("{space: {model.dropout: [0.5, 0, 0.0]}}", "tune.space.model.dropout: choice: 0 is listed twice"),
        (
            "{space: {train.epochs: {choice: [1], when: {model.dropout: 0}}, model.dropout: {uniform: [0, 0.5]}}}",
            "which is a range: a condition needs a list",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(job: Job, block: str, message: str) -> None:
    found = messages(job(f"tune: {block}"))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            "checkpoint: {metric: eval_f2}",
            ":22: checkpoint.metric: image-classification has no 'eval_f2'; it has",
        ),
        ("checkpoint: {mode: max}", "checkpoint.mode: max of what? Name the metric: {metric: eval_f1, mode: max}"),
        ("train: {early_stopping: {metric: f1}}", "train.early_stopping.metric: image-classification has no 'f1'"),
    ],
)
def test_metrics_are_those_of_the_task_wherever_they_are_named(job: Job, block: str, message: str) -> None:
    found = messages(job(block))
    assert len(found) == 1
    assert message in found[0]


def test_a_best_checkpoint_by_what_nobody_measures_is_refused(job: Job) -> None:
    start = "task: image-classification\ndata: {train: builtin:digits}\n"
    (found,) = messages(job("checkpoint: {metric: eval_f1}", start=start))
    assert "checkpoint.metric: it needs data.eval, which measures it" in found


def test_a_trial_keeps_the_checkpoint_that_is_best_at_what_the_sweep_goes_by(job: Job) -> None:
    sweep = frozen(load(job("tune: {metric: eval_f1, mode: max}")).spec)
    assert trial_job(sweep, {})["checkpoint"]["metric"] == lone_job(sweep, {})["checkpoint"]["metric"] == "eval_f1"
    sweep = frozen(load(job("tune: {metric: eval_f1}\ncheckpoint: {metric: eval_loss}")).spec)
    assert trial_job(sweep, {})["checkpoint"]["metric"] == "eval_loss"


@pytest.mark.parametrize(("metric", "expected"), [("eval_mae", "eval_mae"), (None, "eval_loss")])
def test_a_trial_of_a_task_of_ones_own_keeps_what_is_best_at_what_the_sweep_goes_by(
    job: Job, metric: str | None, expected: str
) -> None:
    sweep = frozen(load(job("tune: {}")).spec)
    sweep |= {"task": "mine:Task", "tune": {**sweep["tune"], "metric": metric, "mode": "min"}}
    for made in (trial_job(sweep, {}), lone_job(sweep, {})):
        assert (made["checkpoint"]["metric"], made["checkpoint"]["mode"]) == (expected, "min")


@pytest.mark.parametrize(
    ("setting", "key", "domain"),
    [
        ("train.optimizer.lr={uniform: [0.2, 0.3]}", "train.optimizer.lr", {"uniform": [0.2, 0.3]}),
        ("train.optimizer.lr.uniform=[0.2, 0.3]", "train.optimizer.lr", {"uniform": [0.2, 0.3]}),
        ("train.batch_size=[8, 16]", "train.batch_size", {"choice": [8, 16]}),
        (
            "train.optimizer.momentum.when.train.optimizer.name=sgd",
            "train.optimizer.momentum",
            {"uniform": [0.8, 0.9], "when": {"train.optimizer.name": "sgd"}},
        ),
    ],
)
def test_keys_of_a_space_can_be_set_from_the_command_line(
    job: Job, setting: str, key: str, domain: dict[str, object]
) -> None:
    names, momentum = "train.optimizer.name: [adamw, sgd]", "train.optimizer.momentum: {uniform: [0.8, 0.9]}"
    base = names if "momentum" not in setting else f"{names}, {momentum}"
    space = load(job(f"tune: {{space: {{{base}}}}}"), overrides=[f"tune.space.{setting}"]).spec.tune.space  # type: ignore[union-attr]
    assert space is not None
    assert space[key].model_dump(mode="json", exclude_defaults=True) == domain
    assert "train.optimizer.name" in space


def test_a_sweep_can_be_taken_away_on_the_command_line(job: Job) -> None:
    for setting in ("tune=null", "tune="):
        assert load(job("tune: {trials: 20}"), overrides=[setting]).spec.tune is None
    assert tune_of(job("tune: {trials: 20}")).trials == 20


@pytest.mark.parametrize("value", ["false", "0", "[]", "''"])
def test_what_is_no_block_begins_no_sweep(job: Job, value: str) -> None:
    with pytest.raises(JobFileError, match="tune"):
        load(job(), overrides=[f"tune={value}"])


def test_a_sweep_without_evaluation_is_refused(job: Job) -> None:
    found = messages(job("tune: {}", start="task: image-classification\ndata: {train: builtin:digits}\n"))
    assert found == [
        "job.yaml:3:1: tune: it needs data.eval, as trials are compared by an evaluation: eval: {split: 0.2}"
    ]


def test_a_trial_without_evaluation_is_refused(job: Job) -> None:
    (message,) = messages(job("tune: {space: {data.eval: [{split: 0.1}, null]}}"))
    assert message.endswith(": trials are compared by an evaluation")
    assert "tune.space.data.eval.1" in message


def test_a_trial_has_no_more_workers_than_the_cluster(job: Job) -> None:
    found = messages(job("tune: {workers_per_trial: 3}\ncluster: {workers: 2}"))
    assert len(found) == 1
    assert "tune.workers_per_trial: a trial has 3, and the cluster no more than 2 in all" in found[0]


def test_a_trial_of_several_workers_takes_a_pod_more(job: Job) -> None:
    block = "tune: {workers_per_trial: 2}\nstorage: s3://bucket/runs\ncluster: {provider: kubernetes, image: x, "
    found = messages(job(f"{block}workers: 2}}"))
    assert "tune.workers_per_trial: a trial of 2 takes 3 pods, one for the process that looks after it" in found[0]
    assert tune_of(job(f"{block}workers: {{min: 1, max: 3}}}}")).workers_per_trial == 2
    assert tune_of(job(f"{block}accelerators: 'L4:2'}}")).workers_per_trial == 2


def test_a_plan_shows_the_space(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    space = "train.optimizer.lr: {loguniform: [1e-4, 0.1], when: {model.name: cnn}}, model.name: [cnn]"
    plan_command(str(job(f"tune: {{trials: 7, space: {{{space}}}}}")))
    shown = " ".join(capsys.readouterr().out.split())
    assert "7 trials; tpe, seed 0, scheduler asha; the best has the maximum of eval_accuracy" in shown
    assert "train.optimizer.lr: 0.0001 to 0.1, logarithmic, where model.name is cnn" in shown


def test_a_plan_says_that_there_are_fewer_points_than_trials(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    plan_command(str(job("tune: {trials: 7, space: {train.epochs: [1, 2, 3]}}")))
    assert "3 trials: every point, and there are no more, though 7 were asked for" in " ".join(
        capsys.readouterr().out.split()
    )


def test_every_block_of_a_sweep_has_its_words_in_the_schema() -> None:
    assert {"tune"} <= set(JobSpec.model_fields)
    for block in ("Tune", "Domain", "Search", "Scheduler"):
        for name, field in JobSpec.model_json_schema()["$defs"][block]["properties"].items():
            assert name in ("name", "search", "scheduler") or field.get("description"), (block, name)


@pytest.mark.parametrize(
    ("space", "problem"), [("{train.optimizer.name: []}", "the list is empty"), ("{}", "the block is empty")]
)
def test_an_empty_space_or_list_is_called_empty(job: Job, space: str, problem: str) -> None:
    with pytest.raises(JobFileError, match=problem):
        load(job(), overrides=[f"tune.space={space}"])


def test_a_sweep_may_have_no_node_to_begin_with(job: Job) -> None:
    cluster = "{provider: kubernetes, accelerators: L4, nodes: {min: 0, max: 8}}"
    block = f"storage: s3://b/runs\ncluster: {cluster}\ntune: {{space: {{train.optimizer.lr: [0.1, 0.2]}}}}"
    assert tune_of(job(block)).tried == 2
