"""What load says of a job file that is wrong: every mistake, where it is, and what to write instead."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import UsageError
from launcher import blocks
from launcher.mistakes import JobFileError, Mistake
from launcher.spec import JobSpec, load

pytestmark = pytest.mark.usefixtures("home")

Job = Callable[..., Path]

FIVE_MISTAKES = """\
task: image-classification
data:
  train: builtin:digit
  eval: {split: 2}
train:
  epochs: five
  lr: 1e-3
  optimizer: {name: adamm}
"""

FIVE_MESSAGES = """\
job.yaml:3:10: data.train: there is no builtin:digit; builtin data: digits; did you mean digits?
job.yaml:4:17: data.eval.split: 2 is out of range: it must be below 1
job.yaml:6:11: train.epochs: 'five' is not a whole number
job.yaml:7:3: train.lr: unknown key; did you mean train.optimizer.lr? The keys of train: epochs, max_steps, \
batch_size, micro_batch_size, optimizer, schedule, loss, clip_norm, precision, parallel, seed, eval_every, \
early_stopping, max_failures, step_timeout, log_every
job.yaml:8:21: train.optimizer.name: 'adamm' is not a choice here; the choices: sgd, adam, adamw, adagrad, rmsprop, \
nadam, radam, adafactor, muon; did you mean adam?
5 mistakes in job.yaml; nothing was created"""


def messages(path: Path, **options: Any) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        load(path, **options)
    assert caught.value.exit_code == 2
    return [str(mistake) for mistake in caught.value.mistakes]


def test_every_mistake_is_reported_at_once_with_its_place_and_what_to_write(job: Job) -> None:
    with pytest.raises(JobFileError) as caught:
        load(job(start=FIVE_MISTAKES))
    assert str(caught.value) == FIVE_MESSAGES


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("train: {epochs: true}", "job.yaml:3:17: train.epochs: true is not a whole number"),
        ("train: {epochs: '5'}", "job.yaml:3:17: train.epochs: '5' is not a whole number"),
        ("train: {epochs: 2.5}", "job.yaml:3:17: train.epochs: 2.5 is not a whole number"),
        ("train: {epochs: [1, 2]}", "job.yaml:3:9: train.epochs: [1, 2] is not a whole number"),
        ("train: {epochs: 0}", "job.yaml:3:17: train.epochs: 0 is out of range: it must be at least 1"),
        ("train: {clip_norm: .inf}", "job.yaml:3:20: train.clip_norm: inf is not a finite number"),
        ("train: 5", "job.yaml:3:8: train: 5 is not a block of epochs, max_steps, "),
        ("train: {log_every: }", "job.yaml:3:19: train.log_every: there is no value; give a whole number"),
        ("train: {eval_every: 5}", "job.yaml:3:21: train.eval_every: 5 is not an interval such as 1 epoch"),
        ("train: {eval_every: 2 days}", "job.yaml:3:21: train.eval_every: '2 days' is no interval: write for example"),
        (
            "train: {optimizer: {betas: [0.9]}}",
            "train.optimizer.betas.1: this is missing; give a list of 2, each a number",
        ),
        ("train: {optimizer: sdg}", "job.yaml:3:20: train.optimizer.name: 'sdg' is not a choice here"),
        ("train: {optimizer: 5}", "job.yaml:3:20: train.optimizer: 5 is not sgd, adam, "),
        ("train: {loss: mse}", "job.yaml:3:15: train.loss: image-classification takes cross-entropy or bce, not mse"),
        ("tune: {scheduler: {grace: 2}}", "tune.scheduler.grace: unknown key; did you mean grace_period? The keys of"),
        ("checkpoint: {kep: 3}", "job.yaml:3:14: checkpoint.kep: unknown key; did you mean keep? The keys of"),
        ("epochs: 3", "job.yaml:3:1: epochs: unknown key; did you mean train.epochs? The keys of the file: task, "),
        ("payment: 3", "job.yaml:3:1: payment: unknown key. The keys of the file: task, "),
        ("cluster: {provider: lokal}", "the choices: local, kubernetes; did you mean local?"),
        (
            "storage: s3://b/runs\ncluster: {provider: kubernetes, name: Dev}",
            "job.yaml:4:39: cluster.name: 'Dev' does not fit",
        ),
        (
            "cluster: {provider: kubernetes, image: x, adress: y}",
            "job.yaml:3:43: cluster.adress: unknown key. The keys of cluster: provider, context, name, namespace, ",
        ),
        (
            "cluster: {provider: kubernetes, image: x, resources: {memory: 4 GB}}",
            "job.yaml:3:63: cluster.resources.memory: '4 GB' does not fit (for example 16Gi; default: 4Gi, or 12",
        ),
        (
            "cluster: {provider: kubernetes, image: x, accelerators: RTX4090}",
            "job.yaml:3:57: cluster.accelerators: RTX4090 is of no kind that is known here: GPU, T4, V100, L4, ",
        ),
        (
            "cluster: {provider: kubernetes, image: x, nodes: 2}",
            "job.yaml:3:50: cluster.nodes: nodes are pods with accelerators, and there are none",
        ),
        (
            "storage: s3://b/runs\ncluster: {provider: kubernetes, accelerators: L4, nodes: {min: 0, max: 8}}",
            "cluster.nodes.min: 0 is for sweeps, whose trials ask for nodes; a run needs 1 or more",
        ),
        ("cluster: {accelerators: GPU, nodes: 2}", "cluster.nodes: nodes are those of a Ray at an address, with acce"),
        (
            "storage: runs\ncluster: {provider: kubernetes, image: x}",
            "/runs is on this machine, where no pod sees it: write s3://bucket/prefix or gs://bucket/prefix",
        ),
        ("cluster: {accelerators: 2 GPUs}", "'2 GPUs' does not fit (for example GPU:2: two ranks with a GPU each)"),
        ("env: {THREADS: 1}", 'job.yaml:3:16: env.THREADS: 1 is not text; put it in quotes: "1"'),
        ("secrets: [2X]", "job.yaml:3:11: secrets.0: '2X' is no name for a variable: letters, digits and _"),
        ("secrets: [A, B, A]", "secrets: A is there twice: a variable is either in env, with its value, or here"),
        ("env: {A: x}\nsecrets: [A]", "secrets: A is there twice: a variable is either in env"),
        ("env: {2X: a}", "job.yaml:3:11: env.2X: '2X' is no name for a variable: letters, digits and _"),
        ('env: {X: "a\\0b"}', "job.yaml:3:10: env.X: the value holds a NUL byte"),
        ("name: 'a; rm -rf $HOME'", "job.yaml:3:7: name: 'a; rm -rf $HOME' is no name: lower-case letters"),
        ("name: 'a; rm -rf $HOME'", "for example a-rm-rf-home"),
        ("storage: ftp://host/x", "job.yaml:3:10: storage: ftp://host/x: storage is a folder, s3://bucket/prefix or"),
        ("storage: s3://", "job.yaml:3:10: storage: s3:// names no bucket: write s3://bucket/prefix"),
    ],
)
def test_a_mistake_names_its_place_the_value_and_what_may_stand_there(job: Job, more: str, message: str) -> None:
    found = messages(job(more))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{train: builtin:digits, eval: 5}", "job.yaml:2:37: data.eval: 5 is not text or a block of split"),
        (
            "{train: builtin:digits, eval: {splt: 0.2}}",
            "job.yaml:2:38: data.eval.splt: unknown key; did you mean split",
        ),
        ("{train: builtin:digits, normalize: foo}", "data.normalize: 'foo' is not auto, none or a block of mean, std"),
        ("{train: builtin:digits, normalize: {mean: [a], std: [1]}}", "data.normalize.mean.0: 'a' is not a number"),
        ("{train: builtin:digits, normalize: {mean: [1, 2], std: [1]}}", "data.normalize.mean: mean has 2 channels"),
        ("{}", "job.yaml:2:1: data.train: this key is missing; give text (builtin:digits, hf:NAME, "),
        ("{train: 'hf:'}", "data.train: hf: names no data set; write for example hf:ylecun/mnist"),
        ("{train: ./imgs}", "job.yaml:2:15: data.train: ./imgs does not exist; in "),
    ],
)
def test_mistakes_in_data_are_about_the_form_that_was_meant(job: Job, data: str, message: str) -> None:
    start = f"task: image-classification\ndata: {data}\n"
    assert any(message in found for found in messages(job(start=start)))


def test_a_missing_local_path_lists_what_is_there_instead(job: Job, home: Path) -> None:
    (home / "images").mkdir()
    (home / ".hidden").mkdir()
    (found,) = messages(job(start="task: image-classification\ndata: {train: ./imags}\n"))
    assert found == (
        "job.yaml:2:15: data.train: ./imags does not exist; "
        f"in {home} there are: images, job.yaml; did you mean images?"
    )


def test_a_rule_between_keys_points_at_the_key_it_is_about(job: Job) -> None:
    (found,) = messages(job("train:\n  optimizer:\n    name: adam\n    momentum: 0.9\n"))
    assert found == (
        "job.yaml:6:15: train.optimizer.momentum: momentum is an option of sgd, rmsprop, muon, not of adam"
    )


def test_a_mistake_on_the_command_line_names_the_option(job: Job) -> None:
    found = messages(job(), overrides=["train.optimizer.lr=abc", "train.epochs"], env=["X"], name="A B")
    assert found == [
        "--set train.epochs: write it as key=value, for example --set train.optimizer.lr=1e-3",
        "--env X: write it as NAME=value, for example --env X=info",
        "--set train.optimizer.lr=abc: 'abc' is not a number",
        "--name A B: 'A B' is no name: lower-case letters, digits and dashes, a letter first, at most 22 characters; "
        "for example a-b",
    ]


def test_a_mistake_inside_a_value_on_the_command_line_names_its_key_too(job: Job) -> None:
    (found,) = messages(job(), overrides=["train.optimizer={name: sgd, lr: 0}"])
    assert found == (
        "--set train.optimizer={name: sgd, lr: 0}: train.optimizer.lr: 0 is out of range: it must be above 0"
    )


def test_a_value_on_the_command_line_that_is_not_yaml_is_a_mistake_of_the_option(job: Job) -> None:
    (found,) = messages(job(), overrides=["train.loss={name: ["])
    assert found.startswith("--set train.loss={name: [: this is not valid YAML: ")


def test_no_message_repeats_the_value_of_a_variable(job: Job) -> None:
    assert "hunter2" not in "".join(messages(job(), env=["2BAD=hunter2"]))


def test_a_syntax_error_gives_line_and_column(job: Job) -> None:
    (found,) = messages(job("train: {epochs: 5\n"))
    assert re.match(r"job\.yaml:4:1: this is not valid YAML: .*expected ',' or '}'", found)


def test_tabs_are_named_as_the_trouble(job: Job) -> None:
    (found,) = messages(job("train:\n\tepochs: 5\n"))
    assert found.startswith("job.yaml:4:1: this is not valid YAML:")
    assert found.endswith("indent with spaces, not with tabs")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "- a\n", "just text\n"])
def test_a_file_without_keys_lists_the_keys(job: Job, text: str) -> None:
    (found,) = messages(job(start=text))
    assert found.startswith("job.yaml:1:1: ")
    assert found.endswith(f"; its keys are: {', '.join(JobSpec.model_fields)}")
    assert "task, params, model, data, train, checkpoint, name, cluster, storage" in found


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("{}", "job.yaml:3:1: budget: it has no limit: give max_hours, max_usd, or both"),
        ("{max_hours: 0}", "job.yaml:3:21: budget.max_hours: "),
        (
            "{max_usd: 3}",
            "job.yaml:3:19: budget.max_usd: it needs cluster.usd_per_hour, what the cluster costs an hour",
        ),
    ],
)
def test_a_budget_that_limits_nothing_is_refused(job: Job, budget: str, message: str) -> None:
    (found,) = messages(job(f"budget: {budget}\n"))
    assert found.startswith(message)


def test_a_key_that_is_there_twice_is_refused_and_both_places_are_named(job: Job) -> None:
    assert messages(job("train: {}\ntrain: {epochs: 1}\n")) == [
        "job.yaml:4:1: train: this key is here twice; first at job.yaml:3:1"
    ]


def test_a_missing_file_lists_the_job_files_beside_it(job: Job) -> None:
    job()
    with pytest.raises(
        UsageError, match=r"jop\.yaml does not exist; job files in \.: job\.yaml; did you mean job\.yaml"
    ):
        load("jop.yaml")


def test_a_folder_is_no_job_file(home: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder, and there is no job file in .*raylift init"):
        load(home)


def test_a_file_that_is_not_text_is_refused() -> None:
    Path("job.yaml").write_bytes(b"task: \xff")
    with pytest.raises(UsageError, match=r"job\.yaml is not UTF-8 text: byte 6 is 0xff"):
        load("job.yaml")


PATHS = sorted(".".join(map(str, path)) for path in blocks.paths(JobSpec))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), value=JUNK)
def test_whatever_is_set_the_job_loads_or_the_messages_are_in_plain_words(job: Job, path: str, value: object) -> None:
    found = told(job(), f"{path}={json.dumps(value, ensure_ascii=False)}")
    assert not any(re.search(r"Input|pydantic|type=|Value error|something else|Traceback", str(each)) for each in found)
    assert all(str(each.place).startswith(("--set ", "job.yaml:")) for each in found)


def told(path: Path, override: str) -> tuple[Mistake, ...]:
    """Return what is wrong with an override; a refusal names at least one mistake."""
    try:
        load(path, overrides=[override])
    except JobFileError as error:
        return error.mistakes or pytest.fail("refused, and nothing said")
    return ()
