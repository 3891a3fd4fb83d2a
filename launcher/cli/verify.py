"""raylift verify: whether a run's checkpoints are what was written."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import JsonOption, RunName, StorageOption


def verify_command(
    name: RunName,
    storage: StorageOption = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Remove what no resume can need: partial saves, copies, older checkpoints.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Read every checkpoint of a run, and compare its files with their manifest: sizes and SHA-256."""
    from cluster import verification
    from cluster.errors import CorruptObjectError
    from launcher.cli.common import open_run, print_json
    from launcher.submit import refuse_while_running
    from launcher.verified import as_dict, print_found, print_hint, print_swept, reading

    run = open_run(name, storage)
    if sweep:
        refuse_while_running(run)
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
