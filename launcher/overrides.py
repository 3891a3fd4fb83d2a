"""What the command line changes in a job file: --set, --env, --secret, --name, --storage and --on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import UsageError
from cluster.spelling import nearest
from launcher import blocks, settings
from launcher.mistakes import Keys, Mistake, Place
from launcher.yaml_source import Document, parse_option, read_file
from trainers.tuning import Domain

_OF_A_DOMAIN = {*Domain.model_fields}  # how a key of a space is searched, and when


def put_settings(document: Document, overrides: Sequence[str], root: type) -> None:
    """Apply `--set key=value`, in their order; values are YAML."""
    for text in overrides:
        key, equals, value = text.partition("=")
        option = f"--set {text}"
        path = _path(key.strip())
        if not equals or not all(path):
            problem = "write it as key=value, for example --set train.optimizer.lr=1e-3"
            document.mistakes.append(Mistake(Place(option), (), problem))
            continue
        value_of_it = parse_option(value, option, ".".join(map(str, path)))
        if value_of_it.value is None and value_of_it.mistakes:
            document.mistakes += value_of_it.mistakes
        else:
            document.put(path, value_of_it, below_text=block_for(root))


def _path(key: str) -> Keys:
    """Return where a key of the command line is; those of a space have dots themselves."""
    parts = key.split(".")
    rest = parts[2:]
    if parts[:2] != ["tune", "space"] or not rest:
        return tuple(parts)
    below = next((at for at, part in enumerate(rest) if at and part in _OF_A_DOMAIN), len(rest))
    name, within = ".".join(rest[:below]), rest[below:]
    if within[:1] == ["when"] and len(within) > 1:
        within = ["when", ".".join(within[1:])]
    return ("tune", "space", name, *within)


def put_text(document: Document, path: Keys, text: str | None, option: str) -> None:
    """Set a key to exactly this text; None leaves it as it is."""
    if text is not None:
        place = Place(f"{option} {text}", key=".".join(map(str, path)))
        document.put(path, Document(text, {(): place}), below_text=lambda _path, _text: {})


def put_env(document: Document, variables: Sequence[str]) -> None:
    """Apply `--env NAME=value`; values are text, and no message repeats them."""
    for text in variables:
        name, equals, value = text.partition("=")
        place = Place(f"--env {name}", key=f"env.{name}")
        if equals:
            document.put(("env", name), Document(value, {(): place}), below_text=lambda _path, _text: {})
        else:
            problem = f"write it as NAME=value, for example --env {name or 'LOG_LEVEL'}=info"
            document.mistakes.append(Mistake(place, (), problem))


def put_secrets(document: Document, names: Sequence[str]) -> None:
    """Apply `--secret NAME`: it is added to those of the file."""
    for name in names:
        there = document.get(("secrets",))
        listed = there if isinstance(there, list) else []
        if name not in listed:
            place = Place(f"--secret {name}", key="secrets")
            document.put(("secrets",), Document([*listed, name], {(): place}), below_text=lambda _path, _text: {})


def put_cluster(document: Document, on: str) -> None:
    """Replace the cluster block by that of a file, or by a named one of the user's config file."""
    document.put(("cluster",), _cluster(on), below_text=lambda _path, _text: {})


def put_named_cluster(document: Document, name: str | None) -> None:
    """Apply `--cluster NAME`: of a cluster block for Kubernetes, the key `name`."""
    if name is not None:
        if document.get(("cluster", "provider")) == "kubernetes":
            put_text(document, ("cluster", "name"), name, "--cluster")
        else:
            problem = "clusters with a name are on Kubernetes: say which by --on FILE, with provider: kubernetes"
            document.mistakes.append(Mistake(Place(f"--cluster {name}", key="cluster.name"), (), problem))


def block_for(root: type) -> Callable[[Keys, str], dict[str, Any]]:
    """`optimizer: sgd` becomes {name: sgd} where something is set below it."""

    def block(path: Keys, text: str) -> dict[str, Any]:
        below = blocks.block_of(blocks.at(root, path))
        return {"name": text} if blocks.takes_name(below) else {}

    return block


def _cluster(on: str) -> Document:
    path = Path(on).expanduser()
    named = {} if path.is_file() and (len(path.parts) > 1 or path.suffix in (".yaml", ".yml")) else settings.clusters()
    if on in named:
        return named[on]
    if not path.is_file():
        known = f"it has {', '.join(named)}" if named else "it has no clusters"
        raise UsageError(
            f"--on {on}: there is no such file, and no cluster of that name in {settings.config_path()}: "
            f"{known}{nearest(on, list(named))}"
        )
    document = read_file(path, on)
    if isinstance(document.value, dict) and "cluster" in document.value:
        part = document.part(("cluster",))
        part.mistakes = document.mistakes
        return part
    return document
