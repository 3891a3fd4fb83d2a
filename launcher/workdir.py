"""The folder with the code of a task of one's own: whether the class is there, and the archive of it for storage."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster.bundles import WORKDIR, Bundle, bundle_of
from cluster.errors import UsageError
from launcher.mistakes import Keys, Mistake, Place
from launcher.text import size
from launcher.validation import nearest
from launcher.yaml_source import Document
from trainers.config import OWN_TASK

_TASK: Keys = ("task",)
_WORKDIR: Keys = ("workdir",)
_RESERVED = ("cluster", "launcher", "trainers", "raylift")
_LARGEST = 100_000_000  # bytes
_SHOWN = 3


def settle_workdir(document: Document, folder: Path) -> None:
    """Make the path of the folder absolute, and note where the task's class is not in it.

    A path in the job file starts at the file's folder, one from the command line where the command is typed; the
    folder itself is the default.
    """
    task = document.get(_TASK)
    if not isinstance(task, str) or not re.fullmatch(OWN_TASK, task):
        return
    given = document.get(_WORKDIR)
    if not isinstance(given, str | None):
        return
    in_file = given is None or document.place(_WORKDIR).line is not None
    path = Path(os.path.abspath((folder if in_file else Path.cwd()) / Path(given or ".").expanduser()))
    document.value["workdir"] = str(path)
    if not path.is_dir():
        document.mistakes.append(Mistake(document.place(_WORKDIR), _WORKDIR, f"{given} is no folder"))
    elif (mistake := _missing(document, task, path)) is not None:
        document.mistakes.append(mistake)


def pack(workdir: Path, run_id: str, storage: str) -> Bundle:
    """Return the archive of a folder: what git has or would add; without git, all that is not hidden.

    Neither is what lies in the storage, should that be in the folder. Raises UsageError where it is too large.
    """
    left_out = Path(storage.removeprefix("file://")) if "://" not in storage or storage.startswith("file://") else None
    paths = [path for path in _paths(workdir) if left_out is None or left_out not in path.parents]
    sizes = {path: path.stat().st_size for path in paths}
    if (total := sum(sizes.values())) > _LARGEST:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_SHOWN]
        shown = ", ".join(f"{path.relative_to(workdir)} ({size(sizes[path])})" for path in largest)
        raise UsageError(
            f"workdir: {workdir} holds {size(total)}, and no more than {size(_LARGEST)} are taken along. Its largest: "
            f"{shown}. Name them in .gitignore, keep data in storage and its path in params, or set workdir"
        )
    return bundle_of(
        ((path.relative_to(workdir).as_posix(), path.read_bytes()) for path in paths), run_id, prefix=WORKDIR
    )


def _paths(workdir: Path) -> list[Path]:
    names = _known_to_git(workdir)
    found = [workdir / name for name in names] if names is not None else list(_walk(workdir))
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def _known_to_git(workdir: Path) -> list[str] | None:
    """Return the paths that git has, or would add; None where it knows nothing of the folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=workdir, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files that are not hidden, nor of a virtual environment."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            if not (path / "pyvenv.cfg").exists():
                yield from _walk(path)
        else:
            yield path


def _missing(document: Document, task: str, workdir: Path) -> Mistake | None:
    """Say why the class that a task names is not there, from its source alone: nothing is imported."""
    module, _, name = task.partition(":")
    place = document.place(_TASK)
    if module.partition(".")[0] in _RESERVED:
        return Mistake(
            place, _TASK, f"{module.partition('.')[0]} is a package of raylift: give your module another name"
        )
    stem = workdir.joinpath(*module.split("."))
    source = next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)
    if source is None:
        there = sorted(path.stem for path in workdir.glob("*.py"))
        known = f"its modules: {', '.join(there)}" if there else "there is no module in it"
        return Mistake(place, _TASK, f"there is no {module}.py in {workdir}; {known}{nearest(module, there)}")
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except SyntaxError as error:
        return Mistake(Place(str(source), error.lineno, error.offset), _TASK, f"no Python: {error.msg}")
    names = _names(tree)
    if isinstance(names.get(name), ast.FunctionDef | ast.AsyncFunctionDef):
        problem = f"{name} in {source.name} is a function; a task is a class, with build_model, datasets and loss"
        return Mistake(place, _TASK, problem)
    if name not in names and "*" not in names:
        classes = [each for each, node in names.items() if isinstance(node, ast.ClassDef)]
        known = f"its classes: {', '.join(classes)}" if classes else "it has no class"
        return Mistake(place, _TASK, f"{source.name} has no {name}; {known}{nearest(name, classes)}")
    return None


def _names(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return what a module's own statements define, by name; `*` stands for all of another module."""
    found: dict[str, ast.stmt] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node in tree.body or node.name not in found:
                found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {each.id: node for each in node.targets if isinstance(each, ast.Name)}
    return found
