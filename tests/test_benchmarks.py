"""What benchmarks call of raylift, which nothing else keeps as they have it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.checkpoint.saving import raylift


def test_the_benchmark_of_checkpoints_saves_and_restores_by_what_a_run_does(tmp_path: Path) -> None:
    saved = raylift(str(tmp_path), 2_000_000)
    assert saved.size > 1_000_000
    assert saved.restored is not None
