"""How a local run's processes are found and ended, and where its files are."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster import local
from cluster.config import LocalCluster
from cluster.errors import InfrastructureError
from cluster.local import LocalProvider, end_processes, processes_of, ray_folder, scratch_folder
from cluster.provider import LaunchRequest
from tests.harness import ROOT, wait_for
from tests.living import SLEEPER, process_in, scratch_of

# starts a child that works elsewhere, in a session of its own, and waits
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], cwd="/", start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


def pids(folder: Path) -> set[int]:
    return {process.pid for process in processes_of(folder)}


def request(**cluster: object) -> LaunchRequest:
    return LaunchRequest(
        run_id="digits", run_uri="/runs/digits", cluster=LocalCluster.model_validate(cluster), max_failures=0
    )


# -- finding


def test_processes_are_found_by_the_folder_that_they_work_in(tmp_path: Path) -> None:
    (tmp_path / "run" / "deeper").mkdir(parents=True)
    with process_in(tmp_path / "run") as one, process_in(tmp_path / "run" / "deeper") as two, process_in(tmp_path):
        assert pids(tmp_path / "run") == {one.pid, two.pid}


def test_a_folder_whose_name_only_begins_so_is_another(tmp_path: Path) -> None:
    (tmp_path / "run-2").mkdir()
    with process_in(tmp_path / "run-2"):
        assert pids(tmp_path / "run") == set()


def test_a_folder_that_was_removed_still_tells_its_processes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with subprocess.Popen(["sleep", "600"], cwd=tmp_path / "run") as process:
        (tmp_path / "run").rmdir()
        found = pids(tmp_path / "run")
        process.kill()
    assert found == {process.pid}


def test_descendants_are_found_wherever_they_work(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    try:
        assert pids(tmp_path) == {parent.pid, child}
    finally:
        left = end_processes(tmp_path)
        parent.wait()
    assert left == []
    wait_for(lambda: not psutil.pid_exists(child), "the child to be gone", timeout=10)


def test_we_are_never_found_nor_the_shell_that_we_were_typed_in_with_what_else_it_runs(tmp_path: Path) -> None:
    look = "from cluster.local import *; import sys; print([p.pid for p in processes_of(Path(sys.argv[1]))])"
    shell = f"(cd / && exec sleep 600) & {sys.executable} -c '{look}' \"$PWD\"; kill $!"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("[]", "")


def test_a_process_that_is_dead_but_not_waited_for_is_not_found(tmp_path: Path) -> None:
    with process_in(tmp_path, script="pass") as process:
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "the process to end")
        assert pids(tmp_path) == set()


def test_a_process_is_found_whose_number_was_another_s_before(tmp_path: Path) -> None:
    numbers = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(numbers, os.W_OK):
        pytest.skip("the next process's number is for root to choose")
    for _ in range(20):  # anybody else may take the number
        with process_in(tmp_path) as first:
            assert pids(tmp_path) == {first.pid}
        numbers.write_text(str(first.pid - 1))
        with process_in(tmp_path) as second:
            if second.pid == first.pid:
                assert pids(tmp_path) == {second.pid}
                return
    pytest.fail("the number was taken by others every time")


def test_an_audit_names_the_run_of_every_process() -> None:
    run_id = f"audit-{secrets.token_hex(4)}"
    with scratch_of(run_id) as scratch:
        (scratch / "deeper").mkdir()
        with process_in(scratch) as one, process_in(scratch / "deeper") as two:
            found = {resource.name: resource.run_id for resource in LocalProvider().audit()}
    assert (found[str(one.pid)], found[str(two.pid)]) == (run_id, run_id)


# -- ending


def test_a_process_that_ignores_signals_is_ended(tmp_path: Path) -> None:
    deaf = f"import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print(flush=True); {SLEEPER}"
    process = subprocess.Popen([sys.executable, "-c", deaf], cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    assert end_processes(tmp_path) == []
    assert not psutil.pid_exists(process.pid)
    process.wait()


def test_a_process_that_stays_is_a_leftover_and_its_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_GRACE", 0.0)  # seconds in which it is killed
    run_id = f"stays-{secrets.token_hex(4)}"
    with scratch_of(run_id) as scratch, process_in(scratch, "the one that stays") as process:
        receipt = LocalProvider().teardown(run_id)
        assert [resource.name for resource in receipt.leftovers] == [str(process.pid)]
        assert "the one that stays" in receipt.leftovers[0].detail
        assert scratch.exists()


def test_a_teardown_of_nothing_removes_nothing() -> None:
    receipt = LocalProvider().teardown("never-here")
    assert (list(receipt.removed), list(receipt.leftovers)) == ([], [])


# -- files


def test_a_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    local._make_private(tmp_path / "mine")
    local._make_private(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("how", ["open to others", "a link", "a file", "somebody else's"])
def test_a_folder_that_others_prepared_is_refused_with_what_to_do(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "theirs"
    (tmp_path / "real").mkdir(mode=0o700)
    match how:
        case "open to others":
            folder.mkdir()
            folder.chmod(0o755)
        case "a link":
            folder.symlink_to(tmp_path / "real")
        case "a file":
            folder.touch(mode=0o600)
        case _:
            if os.getuid() != 0:
                pytest.skip("only root can give a folder away")
            folder.mkdir(mode=0o700)
            os.chown(folder, 65534, 65534)
    with pytest.raises(InfrastructureError, match=r"theirs is not ours alone; remove it, or chmod 700 it"):
        local._make_private(folder)


def test_rays_folder_leaves_room_for_its_sockets() -> None:
    longest = ray_folder(scratch_folder("x" * 40)) / "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert len(str(longest)) < 104  # macOS; Linux takes 107


def test_runs_of_different_ids_share_no_folder() -> None:
    folders = [path for run_id in ("a", "b") for path in (scratch_folder(run_id), ray_folder(scratch_folder(run_id)))]
    assert len(set(folders)) == 4


# -- plans


@pytest.mark.parametrize(
    ("cluster", "ranks"),
    [
        ({"workers": 3}, "3 CPU"),
        ({"workers": {"min": 1, "max": 3}}, "1 to 3 CPU"),
        ({"accelerators": "GPU:2"}, "GPU:2"),
        ({"accelerators": "GPU:2", "nodes": {"min": 0, "max": 4}, "address": "auto"}, "0 to 4 × GPU:2"),
        ({}, "one per accelerator, or 1 CPU"),
    ],
    ids=str,
)
def test_a_plan_names_ray_the_ranks_and_the_folder(cluster: dict[str, object], ranks: str) -> None:
    plan = LocalProvider().render(request(**cluster))
    assert [(resource.kind, resource.name) for resource in plan.resources] == [
        ("ray", "single-node Ray on this machine"),
        ("ranks", ranks),
        ("scratch", str(scratch_folder("digits"))),
    ]
    assert plan.usd_per_hour == 0


def test_a_plan_names_the_ray_that_a_run_attaches_to() -> None:
    assert LocalProvider().render(request(address="127.0.0.1:6379")).resources[0].detail == "127.0.0.1:6379"
