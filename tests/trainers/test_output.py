"""What the processes of a run print and write, with secrets among it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cluster.segments import SegmentReader
from tests.finished import new_run
from tests.harness import environment

PROGRAM = """
import os, sys
from cluster.records import Result
from cluster.runs import Run
from cluster.segments import SegmentWriter
from trainers.output import shipped_output
attempt = Run.at(sys.argv[1]).claim()
with shipped_output(attempt, "driver"):
    print("logging in with", os.environ["TOKEN"], flush=True)
    os.system("echo a child has $TOKEN too; printf %s hunter")
events = SegmentWriter(attempt.run, attempt.number, "events", "driver")
events.append({"event": "finished", "message": os.environ["TOKEN"]})
events.close()
attempt.finish(Result(state="FAILED", message=f"401: {os.environ['TOKEN']}", exit_code=1))
"""


def test_a_secret_is_neither_printed_nor_stored(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    env = {**environment(), "RAYLIFT_SECRETS": "TOKEN", "TOKEN": 'hunter2-"quoted"'}
    command = [sys.executable, "-P", "-c", PROGRAM, run.uri]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    printed = "logging in with [secret]\na child has [secret] too\nhunter"
    assert done.stderr == printed
    assert SegmentReader(run, 1, "logs", "driver").read_new().decode() == printed
    assert [row["message"] for row in run.rows_of(1, "events")] == ["[secret]"]
    result = run.result()
    assert result is not None
    assert result.message == "401: [secret]"
