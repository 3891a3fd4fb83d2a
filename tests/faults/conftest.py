"""What a run that met no fault computes, for those that meet some to be compared with."""

from __future__ import annotations

import pytest

from cluster.runs import Run
from tests.faults.screens import LONG_STEPS, long_job
from tests.finished import train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of `long_job`, trained without Ray; tests leave it as it is."""
    run = train(tmp_path_factory.mktemp("undisturbed"), long_job("10 epochs"), ranks=2)
    assert [row["step"] for row in run.rows("metrics") if row["kind"] == "step"] == list(range(1, LONG_STEPS + 1))
    return run
