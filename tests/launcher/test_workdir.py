"""A task of the user's own: is its class there, and what does a run take along."""

from __future__ import annotations

import io
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import launcher.workdir
import raylift
from cluster.bundles import own_code
from cluster.errors import CorruptObjectError, TrainingError, UsageError
from cluster.runs import Run
from cluster.storage.open import open_storage
from cluster.trials import trial_run
from launcher.mistakes import JobFileError
from launcher.spec import JobSpec, frozen, load
from launcher.submit import prepare, relaunch
from launcher.workdir import pack
from trainers.tuning import trial_job

Job = Callable[..., Path]
OWN = "task: mine:Mine\nparams: {width: 8}\n"


@pytest.fixture
def mine(job: Job, home: Path) -> Callable[..., Path]:
    """Write job.yaml and mine.py beside it: a task of one's own."""

    def write(more: str = "", *, source: str = "class Mine:\n    pass\n") -> Path:
        (home / "mine.py").write_text(source)
        return job(more, start=OWN)

    return write


def names(data: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def mistakes(path: Path, *overrides: str) -> str:
    with pytest.raises(JobFileError) as raised:
        load(path, overrides=overrides)
    return str(raised.value)


def test_a_task_of_ones_own_starts_at_the_job_file_and_freezes_what_it_knows(mine: Job, home: Path) -> None:
    loaded = load(mine())
    assert (loaded.spec.is_own, loaded.spec.workdir, loaded.spec.params) == (True, str(home), {"width": 8})
    assert {"model", "data"}.isdisjoint(loaded.document)
    assert load(home / "job.yaml").spec == loaded.spec


def test_a_job_made_in_python_takes_its_code_from_the_working_folder(mine: Job, home: Path) -> None:
    mine()
    settled = raylift._settle(JobSpec(task="mine:Mine", params={"width": 8}), None)
    assert (settled.spec.workdir, settled.spec.params) == (str(home), {"width": 8})
    assert settled.document == load(home / "job.yaml", name="job").document


def test_a_workdir_starts_at_the_job_file_and_one_of_the_command_line_where_that_is_typed(
    mine: Job, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mine("workdir: code\n").absolute()
    for folder in (home / "code", home / "else" / "code"):
        folder.mkdir(parents=True)
        (folder / "mine.py").write_text("class Mine: ...\n")
    monkeypatch.chdir(home / "else")
    assert load(path).spec.workdir == str(home / "code")
    assert load(path, overrides=["workdir=code"]).spec.workdir == str(home / "else" / "code")


@pytest.mark.parametrize(
    ("more", "source", "mistake"),
    [
        ("", "class Mines: ...\n", "job.yaml:1:7: task: mine.py has no Mine; its classes: Mines; did you mean Mines?"),
        ("", "x = 1\n", "task: mine.py has no Mine; it has no class"),
        ("", "def Mine(config): ...\n", "task: Mine in mine.py is a function; a task is a class, with build_model"),
        ("", "class Mine:\n  def loss(self:\n", "mine.py:2:11: task: no Python: '(' was never closed"),
        ("workdir: nowhere\n", "", "job.yaml:3:10: workdir: nowhere is no folder"),
        ("data: {train: builtin:digits}\n", "class Mine: ...", "data: mine:Mine brings its own; hand it what it needs"),
        ("model: {dropout: 0.5}\n", "class Mine: ...", "model: mine:Mine brings its own"),
        ("train: {loss: bce}\n", "class Mine: ...", "train.loss: mine:Mine brings its own"),
        ("tune: {space: {params.width: [.inf, 1.0]}}\n", "class Mine: ...", "width: .inf and .nan are not kept"),
        (
            "tune: {metric: accuracy}\n",
            "class Mine: ...",
            "tune.metric: it is eval_loss, or eval_ and a name of your metrics, not accuracy",
        ),
        (
            "tune: {space: {params.widht: [8, 16]}}\n",
            "class Mine: ...",
            "it searches a param that the job file does not give: params has width; did you mean width?",
        ),
    ],
)
def test_what_is_wrong_with_a_task_of_ones_own_is_told_with_its_place(
    mine: Job, more: str, source: str, mistake: str
) -> None:
    assert mistake in mistakes(mine(more, source=source))


@pytest.mark.parametrize(
    "source",
    [
        "from other import Mine\n",
        "from other import *\n",
        "Mine = type('Mine', (), {})\n",
        "Mine: type = make()\n",
        "_, Mine = make()\n",
    ],
)
def test_a_class_may_come_from_another_module(mine: Job, source: str) -> None:
    assert load(mine(source=source)).spec.task == "mine:Mine"


def test_a_module_may_lie_in_a_package(mine: Job, home: Path) -> None:
    (home / "tasks").mkdir()
    (home / "tasks" / "images.py").write_text("class Mine: ...\n")
    assert load(mine(), overrides=["task=tasks.images:Mine"]).spec.task == "tasks.images:Mine"
    assert "there is no tasks.audio.py in" in mistakes(Path("job.yaml"), "task=tasks.audio:Mine")


def test_a_module_with_the_name_of_one_of_ours_is_refused(mine: Job, home: Path) -> None:
    (home / "trainers.py").write_text("class Mine: ...\n")
    assert "trainers is the name of a module of raylift: give yours another one" in mistakes(
        mine(), "task=trainers:Mine"
    )


@pytest.mark.parametrize(
    ("params", "mistake"),
    [
        ("5", "--set params=5: 5 is not a block of names and values"),
        ("{1: 2}", "it searches a param that the job file does not give: params has 1"),
        ("{}", "it searches a param that the job file does not give: there are none"),
    ],
)
def test_a_space_over_params_that_are_none_is_told(mine: Job, params: str, mistake: str) -> None:
    assert mistake in mistakes(mine(), f"params={params}", "tune={trials: 2, space: {params.width: [8, 16]}}")


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("params.opt.rate", "params.opt has lr"),
        ("params.optt.lr", "params has opt, width"),
        ("params.width.lr", "params has opt, width"),
    ],
)
def test_a_space_over_what_no_block_of_params_has_is_told_what_there_is(mine: Job, key: str, known: str) -> None:
    said = mistakes(mine(), "params={opt: {lr: 0.1}, width: 8}", f"tune={{trials: 2, space: {{{key}: [8, 16]}}}}")
    assert f"it searches a param that the job file does not give: {known}" in said


def test_a_key_of_a_block_of_params_may_be_searched(mine: Job) -> None:
    tune = "tune={search: grid, space: {params.opt.lr: [0.1, 0.2]}}"
    document = frozen(load(mine(), overrides=["params={opt: {lr: 0.3, decay: 0}}", tune]).spec)
    assert trial_job(document, {"params.opt.lr": 0.2})["params"] == {"opt": {"lr": 0.2, "decay": 0}}


def test_a_param_that_a_key_below_it_would_replace_is_refused(mine: Job) -> None:
    tune = "tune={trials: 2, space: {params.opt: [sgd, {lr: 1}], params.opt.lr: [0.1, 0.2]}}"
    said = mistakes(mine(), "params={opt: {lr: 0.3}}", tune)
    assert "tune.space.params.opt.0: it would be lost where params.opt.lr has a value" in said


def test_a_param_without_a_value_may_be_searched(mine: Job) -> None:
    loaded = load(mine(), overrides=["params={limit: null}", "tune={trials: 2, space: {params.limit: [8, 16]}}"])
    assert loaded.spec.params == {"limit": None}


def test_a_task_that_is_none_is_told_with_those_that_are(job: Job) -> None:
    said = mistakes(job(start="task: image-clasification\ndata: {train: builtin:digits}\n"))
    assert (
        "is not image-classification or module:Class, for a task of your own; did you mean image-classification?"
        in said
    )


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        ("params: {a: 1}\n", "params: they are for a task of your own, not for image-classification"),
        ("workdir: .\n", "workdir: it is for a task of your own, not for image-classification"),
    ],
)
def test_what_is_for_tasks_of_ones_own_is_refused_elsewhere(job: Job, more: str, mistake: str) -> None:
    assert mistake in mistakes(job(more))


def test_a_built_in_task_needs_data(job: Job) -> None:
    assert "data: this key is missing" in mistakes(job(start="task: image-classification\n"))


def test_an_archive_has_the_folder_but_what_is_hidden_built_or_of_a_run(tmp_path: Path) -> None:
    for name in ("mine.py", "lib/more.py", "data/list.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in (
        ".git/config",
        ".env",
        "lib/__pycache__/more.pyc",
        "venv/pyvenv.cfg",
        "venv/lib.py",
        "runs/one/job.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    made = pack(tmp_path, "mine:Mine", "run", str(tmp_path / "runs"))
    assert names(made.data) == ["data/list.csv", "lib/more.py", "mine.py"]
    assert pack(tmp_path, "mine:Mine", "run", str(tmp_path / "runs")) == made
    (tmp_path / "mine.py").write_text("changed")
    assert pack(tmp_path, "mine:Mine", "run", str(tmp_path / "runs")).path != made.path


def test_where_git_is_its_rules_say_what_is_left_out(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name, text in {
        "mine.py": "",
        "new.py": "",
        ".env": "",
        "big.bin": "",
        ".gitignore": "*.bin\n",
        "gone.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "add", "mine.py", "gone.py"], cwd=tmp_path, check=True)
    (tmp_path / "gone.py").unlink()
    assert names(pack(tmp_path, "mine:Mine", "run", "s3://bucket").data) == ["mine.py", "new.py"]


def test_a_module_that_git_ignores_is_told_before_a_run_misses_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name, text in {".gitignore": "mine.py\n", "mine.py": "", "other.py": ""}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"git ignores mine\.py, so that a run would not take it along"):
        pack(tmp_path, "mine:Mine", "run", "s3://bucket")


def test_code_of_a_submodule_is_taken_along(tmp_path: Path) -> None:
    for folder in (tmp_path / "lib", tmp_path / "work"):
        subprocess.run(["git", "init", "--quiet", folder], check=True)
    (tmp_path / "lib" / "more.py").write_text("")
    (tmp_path / "work" / "mine.py").write_text("")
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", "add", "more.py"], cwd=tmp_path / "lib", check=True)
    subprocess.run(["git", *who, "commit", "--quiet", "-m", "more"], cwd=tmp_path / "lib", check=True)
    add = ["git", *who, "submodule", "--quiet", "add", str(tmp_path / "lib"), "lib"]
    subprocess.run(add, cwd=tmp_path / "work", check=True)
    made = pack(tmp_path / "work", "mine:Mine", "run", "s3://bucket")
    assert names(made.data) == [".gitmodules", "lib/more.py", "mine.py"]


def test_a_folder_that_is_too_large_is_refused_with_what_makes_it_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher.workdir, "_LARGEST", 1000)
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "weights.bin").write_bytes(bytes(2000))
    with pytest.raises(UsageError, match=r"holds 2\.0 kB, and no more than 1\.0 kB.*: weights\.bin \(2\.0 kB\)"):
        pack(tmp_path, "mine:Mine", "run", "s3://bucket")


def test_a_submission_has_the_code_that_its_trials_find_too(mine: Job, tmp_path: Path) -> None:
    submission = prepare(load(mine()), "run")
    assert submission.code is not None
    storage = open_storage(str(tmp_path / "runs"))
    storage.write(submission.code.path, submission.code.data)
    run = Run(storage, "run")
    run.create(b"")
    for holder in (run, trial_run(run, "00001")):
        own_code(holder).extract(tmp_path / holder.id)
        assert (tmp_path / holder.id / "mine.py").is_file()


def test_code_that_is_missing_or_damaged_is_told(mine: Job, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "runs"))
    with pytest.raises(TrainingError, match="has no code in storage: it was cut off while it was submitted"):
        own_code(Run(storage, "run"))
    submission = prepare(load(mine()), "run")
    assert submission.code is not None
    (run := Run(storage, "run")).create(submission.document)
    with pytest.raises(TrainingError, match=r"cut off while it was submitted\. Run the job anew"):
        relaunch(run)  # and no machine is started for it
    storage.write(submission.code.path, submission.code.data[:-1])
    with pytest.raises(CorruptObjectError, match="is not what its name says: it was damaged"):
        own_code(Run(storage, "run")).extract(tmp_path / "there")
