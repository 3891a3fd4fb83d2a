"""The starter file."""

import re
from pathlib import Path

import pytest

from cluster.errors import UsageError
from launcher import blocks
from launcher.cli.init import init_command
from launcher.spec import JobSpec, load
from launcher.starter import starter

pytestmark = pytest.mark.usefixtures("home")


def uncommented(text: str) -> str:
    """Take away the "# " before every key."""
    return re.sub(r"^( *)# ( *[a-z_]+:)", r"\1\2", text, flags=re.MULTILINE)


def test_the_starter_file_loads_unchanged() -> None:
    init_command(Path("my-job.yaml"))
    spec = load("my-job.yaml").spec
    assert (spec.name, spec.data.train, spec.train.optimizer.lr) == ("my-job", "builtin:digits", 1e-3)


def test_taking_away_every_comment_sign_changes_nothing_but_early_stopping_and_a_sweep() -> None:
    init_command(Path("my-job.yaml"))
    given = load("my-job.yaml").spec
    Path("my-job.yaml").write_text(uncommented(Path("my-job.yaml").read_text()))
    shown = load("my-job.yaml").spec
    assert shown.train.early_stopping is not None
    assert shown.tune is not None
    train = shown.train.model_copy(update={"early_stopping": None})
    assert shown.model_copy(update={"train": train, "tune": None, "budget": None}) == given


def test_every_key_is_shown_with_an_explanation() -> None:
    lines = re.findall(r"^[ #]*([a-z_]+):.*?  # (\S.*)$", starter("job.yaml", "job"), flags=re.MULTILINE)
    one_line = {("data", "eval"), ("data", "normalize"), ("cluster", "workers"), ("cluster", "nodes"), ("budget",)}
    assert sorted(key for key, _ in lines) == sorted(
        str(path[-1]) for path in blocks.paths(JobSpec) if path[:-1] not in one_line
    )


def test_a_name_that_yaml_takes_for_something_else_is_quoted() -> None:
    assert '# name: "null"' in starter("null.yaml", "null")


def test_a_file_that_is_there_is_replaced_only_by_force() -> None:
    path = Path("job.yaml")
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"job\.yaml exists already\. Replace it: raylift init --force job\.yaml"):
        init_command(path)
    assert path.read_text() == "mine"
    init_command(path, force=True)
    assert load(path).spec.task == "image-classification"


def test_a_folder_that_is_not_there_is_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match=r"missing/job\.yaml cannot be written: No such file or directory"):
        init_command(Path("missing/job.yaml"))
