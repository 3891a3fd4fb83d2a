"""The folder with the code of a task of one's own: whether the class is there, and the archive of it for storage."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.bundles import WORKDIR, Bundle, bundle_of
from cluster.errors import UsageError
from cluster.spelling import nearest
from launcher.mistakes import Keys, Mistake, Place
from launcher.text import size
from launcher.yaml_source import Document

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
    task, given = document.get(_TASK), document.get(_WORKDIR)
    if not isinstance(given, str | None):
        return
    in_file = given is None or document.place(_WORKDIR).line is not None
    path = Path(os.path.abspath((folder if in_file else Path.cwd()) / Path(given or ".").expanduser()))
    document.value["workdir"] = str(path)
    if not path.is_dir():
        document.mistakes.append(Mistake(document.place(_WORKDIR), _WORKDIR, f"{given} is no folder"))
    elif (mistake := _missing(document, task, path)) is not None:
        document.mistakes.append(mistake)


def pack(workdir: Path, task: str, run_id: str, storage: str) -> Bundle:
    """Return the archive of a folder: what git has, or would add and is not hidden; without git, what is not hidden.

    Nor is what lies in the storage, should that be in the folder. Raises UsageError where it is too large, or has not
    the module of the task.
    """
    left_out = Path(storage.removeprefix("file://")) if "://" not in storage or storage.startswith("file://") else None
    paths = [path for path in _paths(workdir) if left_out is None or left_out not in path.parents]
    if (source := _source(workdir, task)) is not None and source not in paths:
        raise UsageError(
            f"workdir: git ignores {source.relative_to(workdir)}, so that a run would not take it along: take it out "
            "of .gitignore"
        )
    sizes = {path: path.stat().st_size for path in paths}
    if (total := sum(sizes.values())) > _LARGEST:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_SHOWN]
        shown = ", ".join(f"{path.relative_to(workdir)} ({size(sizes[path])})" for path in largest)
        raise UsageError(
            f"workdir: {workdir} holds {size(total)}, and no more than {size(_LARGEST)} are taken along. Its largest: "
            f"{shown}. Name them in .gitignore, keep data in storage and its path in params, or set workdir"
        )
    try:
        files = [(path.relative_to(workdir).as_posix(), path.read_bytes()) for path in paths]
    except OSError as error:
        raise UsageError(
            f"workdir: {error.filename}: {error.strerror}; name it in .gitignore, or set workdir"
        ) from error
    return bundle_of(files, run_id, prefix=WORKDIR)


def _paths(workdir: Path) -> list[Path]:
    names = _known_to_git(workdir)
    found = [workdir / name for name in names] if names else list(_walk(workdir))
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def _known_to_git(workdir: Path) -> set[str]:
    """Return the paths that git has, in submodules too, or would add and are not hidden; none where it knows none."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # of a hook that runs us
    found: set[str] = set()
    for options in (["--cached", "--recurse-submodules"], ["--others", "--exclude-standard"]):
        try:
            command = ["git", "ls-files", "-z", *options]
            done = subprocess.run(command, cwd=workdir, env=env, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return set()
        names = {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
        is_new = "--others" in options
        found |= {name for name in names if not is_new or not any(part.startswith(".") for part in Path(name).parts)}
    return found


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
    first = module.partition(".")[0]
    if first in _RESERVED or first in sys.stdlib_module_names:
        whose = "raylift" if first in _RESERVED else "Python"
        return Mistake(place, _TASK, f"{first} is the name of a module of {whose}: give yours another one")
    if (source := _source(workdir, task)) is None:
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


def _source(workdir: Path, task: str) -> Path | None:
    """Return the file of a task's module; None where there is none."""
    stem = workdir.joinpath(*task.partition(":")[0].split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _names(tree: ast.Module) -> dict[str, ast.AST]:
    """Return what a module's own statements define, by name; `*` stands for all of another module."""
    found: dict[str, ast.AST] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node in tree.body or node.name not in found:
                found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = node
    return found
