from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.runs import Run
from launcher.export import export_model
from tests.finished import train
from tests.trainers.given import Given
from trainers import notice


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that really trained one epoch on the digits; tests leave it as it is."""
    return train(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def exported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of its exported model."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(trained, folder, "last", force=False, warn=pytest.fail)
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: these networks are too small for two, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Return the notice of this process, which has got none yet."""
    monkeypatch.setattr(notice, "_deadlines", [])
    return Given()
