from collections.abc import Callable
from pathlib import Path

import pytest

MINIMAL = "task: image-classification\ndata: {train: builtin:digits, eval: {split: 0.2}}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person with no config file and no variables of ours, in an empty folder."""
    for name in ("RAYLIFT_STORAGE", "RAYLIFT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def job(home: Path) -> Callable[..., Path]:
    """Write job.yaml: a job that loads, and lines added to it."""

    def write(more: str = "", *, start: str = MINIMAL) -> Path:
        (home / "job.yaml").write_text(start + more, encoding="utf-8")
        return Path("job.yaml")

    return write
