"""A rank that hangs in code of its user, alive and beating: it is ended, and the run goes on as if it had not hung."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import ROOT, assert_clean, assert_nothing_left, fresh_id, losses, open_run, raylift

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

NOTICED = 20.0  # seconds until the loss is known
GOES_ON = 60.0  # until the next step: on a busy machine ranks take half of that to start; benchmarks/recovery times it
TASK = """

def deadlock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


HANGS = {100: deadlock, 200: torch.distributed.barrier}  # which no other rank enters


class Hangs(Diabetes):
    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        if torch.distributed.get_rank() == 1 and (hang := HANGS.get(self.calls)):
            marker = Path("MARKERS") / hang.__name__
            if not marker.exists():
                marker.touch()
                hang()
        return super().loss(model, batch)
"""


def test_a_rank_that_hangs_is_ended_within_seconds_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    markers = tmp_path / "markers"
    markers.mkdir()
    task = (ROOT / "examples" / "diabetes.py").read_text() + TASK.replace("MARKERS", str(markers))
    (tmp_path / "diabetes.py").write_text(f"import threading\nfrom pathlib import Path\n{task}")
    job = (ROOT / "examples" / "diabetes.yaml").read_text().replace("diabetes:Diabetes", "diabetes:Hangs")
    (tmp_path / "job.yaml").write_text(job)
    run = open_run(tmp_path / "runs", fresh_id("hangs"))
    done = raylift("run", tmp_path / "job.yaml", "--id", run.id, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    hung = sorted(marker.stat().st_mtime for marker in markers.iterdir())
    lost = [row for row in run.rows("events") if row["event"] == "recovering"]
    assert len(hung) == len(lost) == 2
    for attempt, at, row in zip((1, 2), hung, lost, strict=True):
        assert row["reason"].startswith("rank 1 was ended: it hung: computing for ")
        assert row["time"] - at < NOTICED
        goes_on = min(row["time"] for row in run.rows_of(attempt + 1, "metrics"))
        assert goes_on - at < GOES_ON
    assert run.attempts() == [1, 2, 3]
    assert_nothing_left(run.id)
    assert_clean(run)
    whole = raylift("run", tmp_path / "job.yaml", "--id", f"{run.id}-whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert losses(run) == losses(open_run(tmp_path / "runs", f"{run.id}-whole"))
