"""raylift schema: print the job file's JSON Schema."""

from __future__ import annotations

import typer


def schema_command() -> None:
    """Print the JSON Schema of a job file, for editors.

    Keep it beside the job file: raylift schema > raylift.schema.json. Then make the job file's first line
    `# yaml-language-server: $schema=raylift.schema.json`, and an editor with a YAML language server (VS Code's YAML
    extension, Neovim, Emacs, JetBrains) completes and checks its keys.
    """
    import json

    from launcher.json_schema import job_schema

    typer.echo(json.dumps(job_schema(), indent=2))
