"""What the user's config file may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.config import Block
from launcher.mistakes import JobFileError
from launcher.validation import validate
from launcher.yaml_source import Document, read_file


class ConfigFile(Block):
    """What a person sets once for all jobs."""

    storage: str | None = Field(default=None, description="a folder, s3://bucket/prefix or gs://bucket/prefix")
    clusters: dict[str, dict[str, Any]] = Field(default={}, description="cluster blocks for --on NAME")


def read_config(path: Path) -> Document:
    """Return a config file that is valid but for what is in its clusters. Raises JobFileError."""
    document = read_file(path, str(path))
    if document.value is None and not document.mistakes:
        document.value = {}
    mistakes = validate(ConfigFile, document)[1]
    if mistakes:
        raise JobFileError(mistakes, str(path))
    return document
