"""A job file that is right: what load makes of it and of the command line's changes."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from cluster.config import Workers
from cluster.errors import UsageError
from cluster.runs import RUN_ID, new_run_id
from launcher.mistakes import JobFileError
from launcher.spec import NAME_LENGTH, LoadedJob, clean_name, load, load_frozen

Job = Callable[..., Path]


def freeze(job: LoadedJob) -> bytes:
    stream = BytesIO()
    YAML(typ="safe", pure=True).dump(job.document, stream)
    return stream.getvalue()


def test_a_job_that_says_little_gets_the_defaults(job: Job, home: Path) -> None:
    spec = load(job()).spec
    assert (spec.name, spec.storage, spec.env) == ("job", str(home / "runs"), {})
    assert (spec.train.optimizer.name, spec.cluster.provider) == ("adamw", "local")


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("3e-4", 0.0003), ("1E5", 100000.0), ("1_000", 1000.0)])
def test_numbers_are_those_of_yaml_1_2(job: Job, text: str, value: float) -> None:
    assert load(job(f"train: {{optimizer: {{lr: {text}}}}}")).spec.train.optimizer.lr == value
    assert load(job(), overrides=[f"train.optimizer.lr={text}"]).spec.train.optimizer.lr == value


def test_a_whole_number_may_be_written_with_an_exponent(job: Job) -> None:
    assert load(job("train: {max_steps: 1e3}")).spec.train.max_steps == 1000


def test_yes_and_on_are_text_as_in_yaml_1_2(job: Job) -> None:
    assert load(job("env: {A: yes, B: on, C: 2026-01-31}")).spec.env == {"A": "yes", "B": "on", "C": "2026-01-31"}


def test_a_block_whose_keys_are_all_comments_is_its_defaults(job: Job) -> None:
    spec = load(job("train:\n  # epochs: 3\nmodel:\nenv:\n")).spec
    assert spec == load(job()).spec


@pytest.mark.parametrize(
    ("workers", "mistake"),
    [
        ("0", "cluster.workers: 0 is out of range: it must be at least 1"),
        ("513", "cluster.workers: 513 is out of range: it must be at most 512"),
        ("two", "cluster.workers: 'two' is not a whole number or a block of min, max"),
        ("{min: 3, max: 2}", "cluster.workers.min: 3 is more than max, which is 2"),
        ("{min: 0, max: 2}", "cluster.workers.min: 0 is out of range: it must be at least 1"),
        ("{min: 1}", "cluster.workers.max: this key is missing"),
        ("{min: 1, most: 2}", "cluster.workers.most: unknown key"),
        ("{min: true, max: 2}", "cluster.workers.min: true is not a whole number"),
    ],
)
def test_a_number_of_workers_that_cannot_be_is_told(job: Job, workers: str, mistake: str) -> None:
    with pytest.raises(JobFileError) as raised:
        load(job(f"cluster: {{workers: {workers}}}\n"))
    assert mistake in str(raised.value)


def test_workers_may_be_a_range(job: Job) -> None:
    path = job("cluster: {workers: {min: 1, max: 4}}\n")
    assert load(path).spec.cluster.workers == Workers(min=1, max=4)
    assert load(path, overrides=["cluster.workers.max=8"]).spec.cluster.workers == Workers(min=1, max=8)
    assert load(path, overrides=["cluster.workers=2"]).spec.cluster.workers == 2


@pytest.mark.parametrize(
    "block",
    [
        "cluster: {workers: {min: 1, max: 2}}",
        "cluster: {workers: 2}",
        "cluster: {accelerators: 'GPU:2'}",
        "cluster: {}",
    ],
)
def test_a_frozen_job_reads_back_equal(job: Job, block: str) -> None:
    loaded = load(job(f"{block}\ncheckpoint: {{every: 1234567 steps}}\nenv: {{A: 'yes', B: '1'}}\n"))
    assert load_frozen(freeze(loaded)) == loaded.spec


def test_a_frozen_job_keeps_every_default(job: Job) -> None:
    document = load(job()).document
    assert document["train"]["seed"] == 0
    defaults = {"every": "1 epoch", "keep": 3, "best": True, "metric": None, "mode": None}
    assert document["checkpoint"] == defaults


def test_a_frozen_job_of_another_version_is_refused_with_its_unknown_key(job: Job) -> None:
    frozen = freeze(load(job())) + b"later: 1\n"
    with pytest.raises(JobFileError, match=r"job\.yaml:\d+:1: later: unknown key.*\n.*another version of raylift"):
        load_frozen(frozen)


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("train.optimizer.lr=0.1", ("sgd", 0.1)),
        ("train.optimizer=adam", ("adam", None)),
        ("train.optimizer={name: adam, lr: 1e-4}", ("adam", 1e-4)),
    ],
)
def test_a_setting_below_a_name_alone_keeps_the_name(job: Job, override: str, found: tuple[str, float]) -> None:
    optimizer = load(job("train: {optimizer: sgd}"), overrides=[override]).spec.train.optimizer
    assert (optimizer.name, optimizer.lr) == found


def test_a_setting_makes_the_blocks_on_its_way(job: Job) -> None:
    spec = load(job(), overrides=["train.early_stopping.patience=2", "cluster.workers=3"]).spec
    assert spec.train.early_stopping is not None
    assert (spec.train.early_stopping.patience, spec.cluster.workers) == (2, 3)


def test_a_setting_below_a_value_of_another_form_replaces_it(job: Job) -> None:
    overrides = ["data.normalize.mean=[0.5]", "data.normalize.std=[0.2]"]
    loaded = load(
        job(start="task: image-classification\ndata: {train: builtin:digits, normalize: none}"), overrides=overrides
    )
    assert loaded.document["data"]["normalize"] == {"mean": [0.5], "std": [0.2]}


def test_of_two_settings_the_later_wins(job: Job) -> None:
    assert load(job("train: {epochs: 1}"), overrides=["train.epochs=2", "train.epochs=3"]).spec.train.epochs == 3


def test_name_storage_and_env_win_over_the_file_and_over_settings(job: Job) -> None:
    loaded = load(
        job("name: a\nstorage: ./a\nenv: {X: a, Y: a}"),
        overrides=["name=b", "storage=./b", "env.X=b"],
        name="c",
        storage="s3://bucket/c/",
        env=["X=1=2", "Z="],
    )
    assert (loaded.spec.name, loaded.spec.storage) == ("c", "s3://bucket/c")
    assert loaded.spec.env == {"X": "1=2", "Y": "a", "Z": ""}


def test_storage_comes_from_the_file_before_the_variable(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLIFT_STORAGE", "gs://bucket/variable")
    assert load(job("storage: gs://bucket/file")).spec.storage == "gs://bucket/file"
    assert load(job()).spec.storage == "gs://bucket/variable"


def test_data_starts_at_the_job_files_folder_and_storage_where_the_command_is_typed(home: Path) -> None:
    folder = home / "jobs"
    (folder / "images").mkdir(parents=True)
    (folder / "job.yaml").write_text(
        "task: image-classification\ndata: {train: ./images, eval: images}\nstorage: ./runs"
    )
    document = load("jobs/job.yaml").document
    assert (document["data"]["train"], document["data"]["eval"]) == (str(folder / "images"), str(folder / "images"))
    assert document["storage"] == str(home / "runs")


def test_data_on_the_command_line_starts_where_the_command_is_typed(home: Path) -> None:
    (home / "jobs").mkdir()
    (home / "images").mkdir()
    (home / "jobs" / "job.yaml").write_text("task: image-classification\ndata: {train: builtin:digits}")
    document = load("jobs/job.yaml", overrides=["data.train=images"]).document
    assert document["data"]["train"] == str(home / "images")


@pytest.mark.parametrize("source", ["s3://bucket/x", "gs://bucket/x", "hf:ylecun/mnist", "builtin:digits"])
def test_data_elsewhere_is_left_as_it_is(job: Job, source: str) -> None:
    assert load(job(), overrides=[f"data.train={source}"]).document["data"]["train"] == source


def test_data_may_be_a_pattern_of_files_that_exist(job: Job, home: Path) -> None:
    (home / "part-0.parquet").touch()
    assert load(job(), overrides=["data.train=part-*.parquet"]).spec.data.train == str(home / "part-*.parquet")
    with pytest.raises(JobFileError, match="does not exist"):
        load(job(), overrides=["data.train=other-*.parquet"])


@pytest.mark.parametrize("text", ["cluster: {workers: 4}\n", "workers: 4\n", "# more\nprovider: local\nworkers: 4\n"])
def test_on_a_file_replaces_the_cluster_block(job: Job, home: Path, text: str) -> None:
    (home / "box.yaml").write_text(text)
    loaded = load(job("cluster: {accelerators: 'GPU:2'}"), on="box.yaml")
    assert (loaded.spec.cluster.workers, loaded.spec.cluster.accelerators) == (4, None)


def test_a_mistake_in_the_file_given_by_on_names_that_file(job: Job, home: Path) -> None:
    (home / "box.yaml").write_text("cluster:\n  workers: none\n  workers: 1\n")
    with pytest.raises(JobFileError) as caught:
        load(job(), on="box.yaml")
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "box.yaml:2:12: cluster.workers: 'none' is not a whole number or a block of min, max",
        "box.yaml:3:3: cluster.workers: this key is here twice; first at box.yaml:2:3",
    ]


def test_on_a_name_takes_the_block_of_the_config_file(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("clusters:\n  box: {workers: 8}\n  bad: {workers: 0}\n")
    monkeypatch.setenv("RAYLIFT_CONFIG", str(config))
    assert load(job(), on="box").spec.cluster.workers == 8
    with pytest.raises(JobFileError, match=r"config\.yaml:3:18: cluster\.workers: 0 is out of range"):
        load(job(), on="bad")
    with pytest.raises(UsageError, match=r"--on bax: there is no such file, .* it has box, bad; did you mean box\?"):
        load(job(), on="bax")


def test_settings_apply_to_the_cluster_that_on_chose(job: Job, home: Path) -> None:
    (home / "box.yaml").write_text("workers: 4\n")
    assert load(job(), on="box.yaml", overrides=["cluster.workers=5"]).spec.cluster.workers == 5


def test_a_name_comes_from_the_files_name_where_none_is_given(job: Job, home: Path) -> None:
    job().rename(home / "My Digits (v2).yaml")
    assert load("My Digits (v2).yaml").spec.name == "my-digits-v2"


def test_the_longest_name_makes_a_run_id_of_forty_characters() -> None:
    run_id = new_run_id("n" * NAME_LENGTH)
    assert len(run_id) == 40
    assert run_id.startswith("n" * NAME_LENGTH + "-")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_a_cleaned_name_is_always_one_that_loads(job: Job, text: str) -> None:
    assert load(job(), name=clean_name(text)).spec.name == clean_name(text)
    assert RUN_ID.fullmatch(clean_name(text))


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "train.epochs": st.integers(1, 10**9),
        "train.seed": st.integers(0, 2**63 - 1),
        "train.optimizer.lr": st.floats(1e-300, 1e300),
        "train.schedule.final": st.floats(0, 1),
        "data.label_column": st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), max_size=12),
        "data.clean.drop_label_errors": st.booleans(),
        "checkpoint.every.count": st.floats(1e-9, 1e12),
        "checkpoint.every.unit": st.sampled_from(["epoch", "min"]),
    },
).filter(lambda options: ("checkpoint.every.count" in options) == ("checkpoint.every.unit" in options))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=OPTIONS)
def test_what_is_set_is_what_a_frozen_job_reads_back(job: Job, options: dict[str, object]) -> None:
    loaded = load(job(), overrides=[f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in options.items()])
    again = load_frozen(freeze(loaded))
    assert again == loaded.spec
    for key, value in options.items():
        found: object = again
        for name in key.split("."):
            found = getattr(found, name)
        assert found == value
