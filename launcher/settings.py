"""The user's config file, and where a command finds its storage and its runs.

The file has two keys: `storage`, for commands and jobs that name none, and `clusters`, named blocks for --on NAME:
`clusters: {box: {provider: local, workers: 8}}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import RunNotFoundError, UsageError
from cluster.trials import FOLDER, trial_id

if TYPE_CHECKING:
    from launcher.yaml_source import Document

_TRIAL = re.compile(rf"([^/]+)/{FOLDER}/(\d+)(-\d+)?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def config_path() -> Path:
    """Return where the config file is: RAYLIFT_CONFIG, else raylift/config.yaml below XDG_CONFIG_HOME or ~/.config."""
    if chosen := os.environ.get("RAYLIFT_CONFIG"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "raylift" / "config.yaml"


def clusters() -> dict[str, Document]:
    """Return the named cluster blocks of the config file. Raises JobFileError where the file is wrong."""
    document = _config()
    if document is None or not isinstance(document.value.get("clusters"), dict):
        return {}
    return {name: document.part(("clusters", name)) for name in document.value["clusters"]}


def default_storage(flag: str | None) -> str:
    """Return the storage that a command works in: --storage, else RAYLIFT_STORAGE, the config file, or ./runs."""
    chosen = flag or os.environ.get("RAYLIFT_STORAGE")
    if not chosen:
        document = _config()
        chosen = (document and document.value.get("storage")) or "./runs"
    return absolute(chosen)


def absolute(uri: str) -> str:
    """Return a storage or run URI with a local path made absolute. Raises UsageError where nothing can be there."""
    match = _SCHEME.fullmatch(uri)
    if match is None:
        if not uri.strip():
            raise UsageError("storage is empty: give a folder, s3://bucket/prefix or gs://bucket/prefix")
        return os.path.abspath(os.path.expanduser(uri))
    scheme, rest = match.groups()
    if scheme not in ("s3", "gs"):
        raise UsageError(f"{uri}: storage is a folder, s3://bucket/prefix or gs://bucket/prefix, not {scheme}://")
    if not rest.strip("/") or rest.startswith("/"):
        raise UsageError(f"{uri} names no bucket: write {scheme}://bucket/prefix")
    return uri.rstrip("/")


def resolve_run(text: str, storage_flag: str | None, *, run_ids: Callable[[str], Iterable[str]] | None = None) -> str:
    """Return the URI of a run named by its URI, its path, or its id below the storage; of a trial, by ID/trials/7.

    With `run_ids`, which lists the ids in a storage, the beginning of an id will do where only one run has it.
    Raises RunNotFoundError, or UsageError where several begin so.
    """
    trial = _TRIAL.fullmatch(text)
    if trial is not None and not os.path.exists(text):
        sweep = resolve_run(trial[1], storage_flag, run_ids=run_ids)
        return f"{sweep}/{FOLDER}/{trial_id(int(trial[2]))}{trial[3] or ''}"
    if "/" in text:
        return absolute(text)
    storage = default_storage(storage_flag)
    run_id = _complete(text, list(run_ids(storage)), storage) if run_ids is not None else text
    if not run_id or run_id in (".", ".."):
        raise UsageError(f"{text!r} names no run: give its id or URI. List runs: raylift ps")
    return f"{storage.rstrip('/')}/{run_id}"


def _complete(text: str, known: list[str], storage: str) -> str:
    from cluster.spelling import nearest

    found = [text] if text in known else sorted(run_id for run_id in known if text and run_id.startswith(text))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{text} begins the ids of {len(found)} runs in {storage}: {', '.join(found)}. Type more of it"
        )
    hint = f"List them: raylift ps --storage {storage}" if known else "No run is there; another place: --storage"
    raise RunNotFoundError(f"there is no run {text} in {storage}{nearest(text, known)}. {hint}".replace("?. ", "? "))


def _config() -> Document | None:
    """Read the config file; None where there is none, which is an error only where RAYLIFT_CONFIG names it."""
    path = config_path()
    if not path.exists():
        if os.environ.get("RAYLIFT_CONFIG"):
            raise UsageError(f"RAYLIFT_CONFIG names {path}, which does not exist")
        return None
    from launcher.config_file import read_config

    return read_config(path)
