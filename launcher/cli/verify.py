"""raylift verify: whether a run's checkpoints are what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption

if TYPE_CHECKING:
    from cluster.runs import Run


def verify_command(
    name: RunName,
    storage: StorageOption = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Remove what no resume can need: partial saves, copies, older checkpoints.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Read every checkpoint of a run, or of a sweep's trials, and compare its files with their manifest."""
    from cluster import verification
    from cluster.errors import CorruptObjectError
    from launcher.cli.common import open_run, print_json
    from launcher.submit import refuse_while_running
    from launcher.sweeps import read_sweep
    from launcher.verified import as_dict, print_found, print_hint, print_swept, reading

    run = open_run(name, storage)
    if sweep:
        refuse_while_running(run)
    if (trials := read_sweep(run.all_rows("events"))) is not None:
        _verify_trials(run, [trial.id for trial in trials.trials], sweep=sweep, json=json)
        return
    survey = verification.survey(run)
    with reading(survey.size) as tell:
        found = verification.verify(run, survey, tell)
    if not json:
        print_found(found)
    swept = verification.sweep(run, found) if sweep else None
    if json:
        print_json(as_dict(run, found, swept))
    elif swept is not None:
        print_swept(swept)
    else:
        print_hint(run, found)
    if complaint := verification.complain(run, found):
        raise CorruptObjectError(complaint)


def _verify_trials(run: Run, names: Sequence[str], *, sweep: bool, json: bool) -> None:
    from cluster import verification
    from cluster.errors import CorruptObjectError
    from cluster.trials import trial_run
    from launcher.cli.common import print_json
    from launcher.verified import as_dict_of_trials, print_found_of_trials, print_hint, print_swept, reading

    result = run.result()
    goes_on = result is None or result.state != "SUCCEEDED"  # then a trial may start from what another has left
    trials = {name: trial_run(run, name) for name in names}
    surveys = {name: verification.survey(trial) for name, trial in trials.items()}
    if goes_on:
        surveys = {name: replace(survey, state=None) for name, survey in surveys.items()}
    with reading(sum(survey.size for survey in surveys.values())) as tell:
        found = {name: verification.verify(trials[name], survey, tell) for name, survey in surveys.items()}
    if not json:
        print_found_of_trials(found)
    swept = {name: verification.sweep(trials[name], one) for name, one in found.items()} if sweep else {}
    if json:
        print_json(as_dict_of_trials(run, {name: (trials[name], one) for name, one in found.items()}, swept))
    elif sweep:
        print_swept(*swept.values())
    else:
        print_hint(run, *found.values())
    complaints = [complaint for name, one in found.items() if (complaint := verification.complain(trials[name], one))]
    if complaints:
        raise CorruptObjectError("\n".join(complaints))
