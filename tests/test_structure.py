"""The rules of the house that no single package can keep."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import raylift
import trainers.config
import trainers.tuning
from cluster.config import Block

ROOT = Path(__file__).parent.parent
PACKAGES = ("launcher", "cluster", "trainers")
# of the machines this is written on, and of the registries they reach
MACHINES = re.compile(
    r"/(?:work|root|Users)/\w|/opt/(?:wheels|pypi)|pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org"
)


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def imports(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports anywhere, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(package: str, *, forbidden: tuple[str, ...], allowed: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in sources(package)
        for module in imports(file)
        if module.split(".")[0] in forbidden and not f"{module}.".startswith(tuple(f"{name}." for name in allowed))
    ]


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout: which files are tracked is not known")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def modules_of(*arguments: str) -> set[str]:
    """Return the modules that a Python process with these arguments imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    matches = [re.match(r"([a-z0-9-]+)==([^\s;]+)", line) for line in lines if not line.lstrip().startswith("#")]
    return {match[1]: match[2] for match in matches if match is not None}


def ranges(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [Requirement(text) for text in project["dependencies"] + [each for key in extras for each in optional[key]]]


def test_cluster_imports_nothing_else_of_ours() -> None:
    assert offences("cluster", forbidden=("launcher", "trainers", "raylift")) == []


def test_trainers_never_import_the_launcher() -> None:
    assert offences("trainers", forbidden=("launcher", "raylift")) == []


def test_of_the_trainers_the_launcher_imports_what_describes_a_job_alone() -> None:
    assert offences("launcher", forbidden=("trainers",), allowed=("trainers.config", "trainers.tuning")) == []


def test_the_stand_ins_of_kubernetes_import_nothing_of_ours_also_by_way_of_other_tests() -> None:
    files = [file for file in sources("tests/stand_ins/kubernetes") if not file.stem.startswith("test_")]
    names = [f"tests.stand_ins.kubernetes.{file.stem}" for file in files]
    found = modules_of("-c", f"import {', '.join(names)}")
    assert found >= set(names)
    found |= {module for file in files for module in imports(file)}  # also those inside functions
    assert [module for module in found if module.split(".")[0] in (*PACKAGES, "raylift")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_init_files_are_empty(package: str) -> None:
    inits = [file for file in sources(package) if file.name == "__init__.py"]
    assert ROOT / package / "__init__.py" in inits
    assert [file for file in inits if file.read_text()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_modules_is_a_package(package: str) -> None:
    folders = {file.parent for file in sources(package)}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_importing_raylift_imports_neither_torch_nor_ray_nor_pydantic() -> None:
    modules = modules_of("-c", "import raylift")
    assert "raylift" in modules
    assert modules.isdisjoint({"torch", "ray", "pydantic"})


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["ps", "--storage", "empty"]], ids=" ".join)
def test_a_light_command_imports_neither_torch_nor_ray(arguments: list[str], tmp_path: Path) -> None:
    where = [str(tmp_path) if argument == "empty" else argument for argument in arguments]
    modules = modules_of("-m", "launcher.cli.main", *where)
    assert "typer" in modules
    assert modules.isdisjoint({"torch", "ray", "transformers", "boto3", "google.cloud.storage"})


@pytest.mark.parametrize("name", raylift.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(raylift, name).__name__ == name


def test_every_block_of_the_job_file_is_a_public_name() -> None:
    found = {**vars(trainers.config), **vars(trainers.tuning)}
    blocks = [name for name, value in found.items() if inspect.isclass(value) and is_block(value)]
    assert {"Train", "Tune"} <= set(blocks)
    assert set(blocks) - set(raylift.__all__) == set()


def is_block(value: type) -> bool:
    return issubclass(value, Block) and value is not Block


def test_an_unknown_name_of_raylift_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = raylift.runn  # type: ignore[attr-defined]


def test_every_example_is_named_by_a_test() -> None:
    examples = sorted(file.name for file in (ROOT / "examples").glob("*.yaml"))
    assert examples
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in examples if name not in tests] == []


def test_tracked_files_name_no_machine_and_no_registry() -> None:
    texts = {file: file.read_text(errors="replace") for file in tracked_files()}
    found = {str(file.relative_to(ROOT)): match[0] for file, text in texts.items() if (match := MACHINES.search(text))}
    assert found == {}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("cpu.lock", ("train", "aws", "gcp", "kubernetes", "dev")),
        ("cuda.lock", ("train", "aws", "gcp", "kubernetes")),
    ],
)
def test_a_lock_file_pins_every_dependency_within_its_range(lock: str, extras: tuple[str, ...]) -> None:
    pinned = pins(lock)
    wanted = ranges(*extras)
    assert [
        str(each) for each in wanted if not each.specifier.contains(pinned.get(each.name.replace(".", "-"), "0"))
    ] == []


def test_the_lock_files_agree_where_both_pin() -> None:
    cpu, cuda = pins("cpu.lock"), pins("cuda.lock")
    assert cpu.keys() & cuda.keys() > {"torch", "ray"}
    assert {name: (cpu[name], cuda[name]) for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == {}
