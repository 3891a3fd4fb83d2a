"""What pods fetch whose image has no raylift: what is in it, and that they run it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import code
from cluster.errors import InfrastructureError
from cluster.kubernetes import fetch
from launcher import bundle as module
from launcher.bundle import bundle, lock
from tests.harness import ROOT
from tests.real.seaweedfs import SeaweedFS


def names(data: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def test_a_bundle_is_named_by_what_is_in_it_and_the_same_code_is_the_same_bundle() -> None:
    made = bundle("run", on_gpus=False)
    assert made.path == f"run/code/{hashlib.sha256(made.data).hexdigest()}.zip"
    assert bundle("run", on_gpus=False) == made
    assert bundle("run", on_gpus=True).path != made.path
    assert bundle(None, on_gpus=False).path.startswith(".raylift/code/")


def test_a_bundle_has_what_runs_on_a_cluster_and_nothing_else() -> None:
    found = names(bundle("run", on_gpus=False).data)
    assert {"cluster/runs.py", "trainers/main.py", "requirements.lock"} <= {*found}
    assert {name.partition("/")[0] for name in found} == {"cluster", "trainers", "requirements.lock"}
    assert [name for name in found if ".git" in name or "__pycache__" in name] == []


def test_the_raylift_of_a_bundle_is_the_one_that_launches(tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(bundle("run", on_gpus=False).data)).extractall(tmp_path)
    command = [sys.executable, "-P", "-c", "from cluster import code; print(code.digest(), code.__file__)"]
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    said = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert said == [code.digest(), str(tmp_path / "cluster" / "code.py")]


def test_what_is_installed_is_pinned_and_leaves_the_images_ray_alone() -> None:
    for on_gpus in (False, True):
        lines = lock(on_gpus=on_gpus).splitlines()
        assert all("==" in line for line in lines)
        assert "torch==2.13.0" in lines
        assert not any(line.startswith(("ray==", "pytest==")) for line in lines)
        assert any(line.startswith("nvidia-") for line in lines) is on_gpus


def test_an_installation_without_locks_says_that_an_image_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_folders", lambda: iter([Path("/nowhere")]))
    with pytest.raises(InfrastructureError, match=r"requirements/cuda\.lock is not installed.*cluster\.image"):
        lock(on_gpus=True)


# In the pod

UV = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != "--target" ]; do shift; done
mkdir -p "$2"
echo "{package} = True" > "$2/{package}.py"
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a small uv in the place of the image's; return where it notes what it was told."""
    programs, log = tmp_path / "bin", tmp_path / "uv.log"
    programs.mkdir()
    (programs / "uv").write_text(UV.format(log=log, package="installed"))
    (programs / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return log


def in_bucket(s3: SeaweedFS, data: bytes, name: str | None = None) -> str:
    from cluster.storage.open import open_storage

    uri, name = s3.fresh_uri(), name or f"{hashlib.sha256(data).hexdigest()}.zip"
    open_storage(uri).write(f"code/{name}", data)
    return f"{uri}/code/{name}"


def fetching(uri: str, folder: Path) -> list[str]:
    script = Path(fetch.__file__).read_text()
    return [sys.executable, "-c", script, "fetch", uri, str(folder), "boto3==1", "--torch-backend=cpu"]


@pytest.mark.slow
def test_a_pod_fetches_a_bundle_once_and_has_its_packages_installed(
    s3_env: SeaweedFS, uv: Path, tmp_path: Path
) -> None:
    made = bundle("run", on_gpus=False)
    uri, folder = in_bucket(s3_env, made.data), tmp_path / "raylift"
    for _ in range(2):
        subprocess.run(fetching(uri, folder), check=True, capture_output=True)
    there = folder / hashlib.sha256(made.data).hexdigest()
    assert (there / "code" / "cluster" / "runs.py").read_bytes() == (ROOT / "cluster" / "runs.py").read_bytes()
    assert (there / "packages" / "installed.py").exists()
    (told,) = uv.read_text().splitlines()
    assert told.startswith("pip install --quiet --python")
    assert "--no-deps --torch-backend=cpu -r" in told
    assert told.endswith("code/requirements.lock")
    assert [each.name for each in folder.iterdir()] == [there.name], "nothing that is half done is left"


@pytest.mark.slow
def test_pods_that_share_a_folder_may_fetch_at_once_and_who_comes_later_has_nothing_to_do(
    s3_env: SeaweedFS, uv: Path, tmp_path: Path
) -> None:
    """Each installs what it fetches with where no other does: their boto3 is too old."""
    made = bundle("run", on_gpus=False)
    uri, folder = in_bucket(s3_env, made.data), tmp_path / "raylift"
    alone = UV.replace("mkdir", '[ -e "$2" ] && exit 7\nmkdir')
    (tmp_path / "bin" / "uv").write_text(alone.format(log=uv, package="installed"))
    command = [each.replace('"boto3": (1, 36)', '"boto3": (99, 0)') for each in fetching(uri, folder)]
    for name in ("partial-killed", "0" * 64):  # who fetched was killed; nobody has used it for long
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (0, 0))
    at_once = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [each.wait(120) for each in at_once] == [0, 0, 0]
    assert uv.read_text().count("boto3==1") >= 1
    there = folder / hashlib.sha256(made.data).hexdigest()
    assert (there / "code" / "cluster" / "runs.py").read_bytes() == (ROOT / "cluster" / "runs.py").read_bytes()
    assert [each.name for each in folder.iterdir()] == [there.name], "nothing that is half done is left"
    installed = uv.read_text()
    os.utime(there, (0, 0))
    subprocess.run(fetching(uri, folder), check=True, stdout=subprocess.DEVNULL)
    assert uv.read_text() == installed
    assert there.stat().st_mtime > 0, "what a pod uses is kept for the next"


@pytest.mark.slow
@pytest.mark.usefixtures("uv")
def test_a_bundle_that_is_not_what_its_name_says_is_not_run(s3_env: SeaweedFS, tmp_path: Path) -> None:
    uri = in_bucket(s3_env, b"other", f"{'0' * 64}.zip")
    with pytest.raises(SystemExit, match="it was damaged, or written by somebody else"):
        fetch.fetch(uri, str(tmp_path / "raylift"), "boto3==1", [])
    assert list((tmp_path / "raylift").iterdir()) == []


def test_a_client_that_the_image_lacks_is_installed_first(
    uv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = fetch.load("installed", str(tmp_path), "installed==1.0")
    assert found.installed is True
    assert uv.read_text().strip().endswith("installed==1.0")
