"""raylift rehearse: break a job on purpose, and see that it makes no difference."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import JobFile, JsonOption, SetOption, StorageOption

if TYPE_CHECKING:
    from launcher.rehearsal import Rehearsal


def rehearse_command(
    job_file: JobFile,
    kill_worker: Annotated[bool, typer.Option("--kill-worker", help="Kill a rank.")] = False,
    kill_driver: Annotated[bool, typer.Option("--kill-driver", help="Kill the driver.")] = False,
    freeze_worker: Annotated[bool, typer.Option("--freeze-worker", help="Stop a rank for good, alive.")] = False,
    preempt: Annotated[bool, typer.Option("--preempt", help="Give a rank notice that its machine goes.")] = False,
    storage_503: Annotated[bool, typer.Option("--storage-503", help="Have the bucket refuse all for 20 s.")] = False,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Steps to train; the job is cut to them.")] = 60,
    set_: SetOption = None,
    storage: StorageOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep both runs; they stay where they differ anyway.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a job twice on this machine, once through faults, and compare: samples, losses, metrics.

    A job of another cluster runs here with as many workers as there are processors, at most.
    Without a choice of faults, all come that can. The verdict is worked out from storage. Exit code 1: not equal.
    """
    from launcher.cli.common import print_json
    from launcher.rehearsal import Fault, Job, choose, rehearse
    from launcher.rehearsed import print_outcome, showing

    chosen = {
        Fault.KILL_WORKER: kill_worker,
        Fault.KILL_DRIVER: kill_driver,
        Fault.FREEZE_WORKER: freeze_worker,
        Fault.PREEMPT: preempt,
        Fault.STORAGE_503: storage_503,
    }
    job = Job(job_file, set_ or [], storage, steps)
    if (setting := job.moved()) is not None:
        print(f"note: a rehearsal runs on this machine, so as with --set '{setting}'", file=sys.stderr)
    faults = choose([fault for fault, wanted in chosen.items() if wanted], str(job.load().spec.storage))
    with showing(quiet=json) as show:
        done = rehearse(job, faults, show)
    print_json(done.as_dict()) if json else print_outcome(done)
    if done.passed and not keep:
        _remove(done)
    raise typer.Exit(0 if done.passed else 1)


def _remove(done: Rehearsal) -> None:
    done.undisturbed.delete()
    done.disturbed.delete()
