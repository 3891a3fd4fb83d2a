"""The user's config file, and how a command finds storage and runs."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from cluster.errors import RunNotFoundError, UsageError
from launcher.mistakes import JobFileError
from launcher.settings import clusters, config_path, default_storage, resolve_run

pytestmark = pytest.mark.usefixtures("home")

IDS = ["digits-260101000000-aaaa", "digits-260102000000-bbbb", "mnist-260101000000-cccc"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "raylift" / "config.yaml"
    path.parent.mkdir(parents=True)
    return path


def listed(_storage: str) -> Iterable[str]:
    return IDS


def test_a_trial_is_named_by_its_sweeps_id_and_its_number(home: Path) -> None:
    assert resolve_run("sweep/trials/7", "s3://bucket/runs") == "s3://bucket/runs/sweep/trials/00007"
    assert resolve_run("sweep/trials/00012", None) == str(home / "runs/sweep/trials/00012")
    assert resolve_run("sweep/trials/12-1", None) == str(home / "runs/sweep/trials/00012-1")
    (home / "sweep/trials/7").mkdir(parents=True)
    assert resolve_run("sweep/trials/7", None) == str(home / "sweep/trials/7")
    assert resolve_run("./sweep/trials/8", None) == str(home / "sweep/trials/8")


def test_storage_is_the_flag_then_the_variable_then_the_config_file_then_runs_here(
    config: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [default_storage(None)]
    config.write_text("storage: s3://bucket/config\n")
    found.append(default_storage(None))
    monkeypatch.setenv("RAYLIFT_STORAGE", "s3://bucket/variable/")
    found.append(default_storage(None))
    found.append(default_storage("./flag"))
    assert found == [str(home / "runs"), "s3://bucket/config", "s3://bucket/variable", str(home / "flag")]


def test_the_config_file_is_where_the_variable_says_or_below_the_config_folder(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config_path() == config
    monkeypatch.setenv("RAYLIFT_CONFIG", "~/mine.yaml")
    assert config_path() == Path.home() / "mine.yaml"


def test_a_config_file_that_the_variable_names_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLIFT_CONFIG", "missing.yaml")
    with pytest.raises(UsageError, match=r"RAYLIFT_CONFIG names missing\.yaml, which does not exist"):
        default_storage(None)


def test_a_mistake_in_the_config_file_is_shown_at_its_place(config: Path) -> None:
    config.write_text("storge: x\nclusters: [a]\n")
    with pytest.raises(JobFileError) as caught:
        default_storage(None)
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        f"{config}:1:1: storge: unknown key; did you mean storage? The keys of the file: storage, clusters",
        f'{config}:2:1: clusters: ["a"] is not a block of names and values',
    ]


def test_an_empty_config_file_is_none(config: Path, home: Path) -> None:
    config.write_text("# nothing yet\nclusters:\n")
    assert clusters() == {}
    config.write_text("")
    assert default_storage(None) == str(home / "runs")


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("s3://bucket/p/digits-1/", "s3://bucket/p/digits-1"),
        ("gs://bucket/digits-1", "gs://bucket/digits-1"),
        ("/data/runs/digits-1", "/data/runs/digits-1"),
        ("digits-1", "s3://bucket/flag/digits-1"),
    ],
)
def test_a_run_is_its_uri_its_path_or_its_id_in_the_storage(text: str, uri: str) -> None:
    assert resolve_run(text, "s3://bucket/flag/") == uri


def test_a_path_of_a_run_starts_where_the_command_is_typed(home: Path) -> None:
    assert resolve_run("./runs/digits-1", None) == str(home / "runs" / "digits-1")


def test_the_beginning_of_an_id_will_do_where_one_run_has_it() -> None:
    assert resolve_run("mn", "s3://b/p", run_ids=listed) == f"s3://b/p/{IDS[2]}"


def test_an_id_wins_over_the_longer_ones_that_begin_with_it() -> None:
    assert resolve_run("a", "s3://b/p", run_ids=lambda _storage: ["a", "ab"]) == "s3://b/p/a"


def test_a_beginning_that_several_runs_share_lists_them() -> None:
    with pytest.raises(UsageError, match=f"digits begins the ids of 2 runs in s3://b/p: {IDS[0]}, {IDS[1]}"):
        resolve_run("digits", "s3://b/p", run_ids=listed)


def test_an_unknown_run_is_told_with_the_nearest_one_and_how_to_list() -> None:
    with pytest.raises(RunNotFoundError) as caught:
        resolve_run("mnits-260101000000-cccc", "s3://b/p", run_ids=listed)
    assert str(caught.value) == (
        f"there is no run mnits-260101000000-cccc in s3://b/p; did you mean {IDS[2]}? "
        "List them: raylift ps --storage s3://b/p"
    )


@pytest.mark.parametrize("text", ["", "..", "."])
def test_what_can_be_no_run_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no run"):
        resolve_run(text, None)
