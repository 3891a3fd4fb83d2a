"""A minute of random faults; for as long as you like: python -m tests.faults.sequence --minutes 30.

RAYLIFT_TEST_SEED draws others.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.runs import Run
from tests.faults.sequence import check_sequence
from tests.real.seaweedfs import SeaweedFS

# 35: storage is silent for a while, then all but the raylet is killed at once
SEED = int(os.environ.get("RAYLIFT_TEST_SEED", "35"))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_random_sequence_of_faults_leaves_a_history_as_it_must_be(
    tmp_path: Path, s3_env: SeaweedFS, undisturbed: Run
) -> None:
    found = check_sequence(SEED, 2, tmp_path, s3_env, undisturbed.rows("metrics"))
    assert not found, "\n".join(found)
