"""The commands for a run on Kubernetes: from the command line to the API server, the bucket, and back.

Nothing trains here: the tests write to storage what a driver writes, and to the API server what KubeRay does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from cluster.errors import RunExistsError
from cluster.kubernetes.provider import KubernetesProvider
from cluster.kubernetes.reasons import FETCHING
from cluster.records import Result
from cluster.runs import Run
from cluster.segments import IN_STORAGE, SegmentWriter
from cluster.storage.s3 import S3Storage
from launcher import waiting
from launcher.cli.app import app
from launcher.remote import launch_of, tear_down_remote
from tests.cluster.kubernetes.dying import Death
from tests.cluster.kubernetes.kuberay import submit, take_up
from tests.finished import started, write_rows
from tests.harness import ROOT, Started, fresh_id, raylift, raylift_here, start_raylift, wait_for
from tests.harness import open_run as run_in
from tests.real.seaweedfs import SeaweedFS
from tests.stand_ins.kubernetes.server import ApiServer, Fault

pytestmark = pytest.mark.slow

BLOCK = (
    "{provider: kubernetes, image: 'registry.example/raylift:cpu', workers: 2, termination_grace_period_seconds: 30}\n"
)


@pytest.fixture
def options(tmp_path: Path, server: ApiServer, s3_env: SeaweedFS) -> list[str]:  # noqa: ARG001
    """Return what sends the digits example to the cluster, as a run of its own."""
    (tmp_path / "k8s.yaml").write_text(BLOCK)
    on = ["--on", str(tmp_path / "k8s.yaml"), "--storage", s3_env.fresh_uri()]
    return [str(ROOT / "examples" / "digits.yaml"), *on, "--id", fresh_id("digits"), "--env", "LEVEL=info"]


def run_of(options: list[str]) -> Run:
    return run_in(options[options.index("--storage") + 1], options[options.index("--id") + 1])


def _die_at_write(patch: pytest.MonkeyPatch, last: int, *, before: bool) -> list[str]:
    """Have a laptop die before its last write to storage, or after it; return the paths of those that are done."""
    writes: list[str] = []

    def dying(alive: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **more: Any) -> Any:
            if before and len(writes) == last:
                raise Death
            answer = alive(*arguments, **more)
            writes.append(str(arguments))
            if not before and len(writes) == last + 1:
                raise Death
            return answer

        return write

    for method in ("write", "upload"):
        patch.setattr(S3Storage, method, dying(getattr(S3Storage, method)))
    return writes


@contextlib.contextmanager
def following(run: Run) -> Iterator[tuple[Started, list[str]]]:
    """Follow a run's logs, and collect the lines that this prints; all are there at the end."""
    told: list[str] = []
    with start_raylift("logs", "-f", run.uri) as process:
        assert process.stdout is not None

        def collect(lines: IO[str]) -> None:
            for line in lines:
                told.append(line.rstrip("\n"))

        thread = threading.Thread(target=collect, args=(process.stdout,), daemon=True)
        thread.start()
        yield process, told
        thread.join(10)


def test_a_detached_run_is_a_job_in_the_cluster_and_a_run_in_storage(server: ApiServer, options: list[str]) -> None:
    done = raylift("run", *options, "--detach")
    assert done.returncode == 0, done.stderr
    run = run_of(options)
    (job,) = server.all("RayJob")
    assert job["metadata"]["annotations"] == {"raylift.dev/run-uri": run.uri}
    assert b"provider: kubernetes" in run.job()
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    assert (told["state"], told["reason"]) == ("PENDING", "KubeRay has not taken it up yet")


def test_a_run_that_has_a_price_starts_once_somebody_has_agreed_to_it(server: ApiServer, options: list[str]) -> None:
    priced = [*options, "--set", "cluster.usd_per_hour=98", "--detach"]
    refused = raylift_here("run", *priced)
    assert refused.returncode == 2
    assert "Start it for $98.00 an hour? Nobody is here to answer: add --yes" in refused.stderr
    assert server.all("RayJob") == []
    assert not list(run_of(options).storage.list(""))
    assert raylift_here("run", *priced, "--yes").returncode == 0
    assert len(server.all("RayJob")) == 1


def test_a_resume_of_a_run_that_has_a_price_asks_again_and_leaves_all_as_it_was_until_then(
    server: ApiServer, options: list[str]
) -> None:
    run = run_of(options)
    assert raylift_here("run", *options, "--set", "cluster.usd_per_hour=98", "--detach", "--yes").returncode == 0
    run.claim()
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Failed")
    before = (server.all("RayJob"), list(run.storage.list("")))
    refused = raylift_here("resume", run.uri, "--detach")
    assert refused.returncode == 2
    assert "Go on for $98.00 an hour? Nobody is here to answer: add --yes" in refused.stderr
    assert (server.all("RayJob"), list(run.storage.list(""))) == before
    assert raylift_here("resume", run.uri, "--detach", "--yes").returncode == 0
    (job,), (over,) = server.all("RayJob"), before[0]
    assert job["metadata"]["uid"] != over["metadata"]["uid"], "the one that was over has made room"


def test_an_audit_lists_a_run_and_after_its_removal_nothing(server: ApiServer, options: list[str]) -> None:
    where = options[1:3]
    assert raylift("audit", *where).stdout == "nothing of raylift's is there\n"
    assert raylift("run", *options, "--detach").returncode == 0
    run = run_of(options)
    made = take_up(server, run.id)
    cluster, *pods = (made[each]["metadata"]["name"] for each in ("cluster", "head", "worker"))
    expected = [["RayJob", run.id], ["RayCluster", cluster], *(["Pod", name] for name in pods)]
    head, *rows = raylift("audit", *where).stdout.splitlines()
    assert head.split() == ["RUN", "KIND", "NAME"]
    assert [row.split()[:3] for row in rows] == [[run.id, *each] for each in expected]
    told = json.loads(raylift("audit", *where, "--json").stdout)
    assert [[each["kind"], each["name"]] for each in told] == expected
    assert raylift("stop", "--now", run.uri).returncode == 0
    assert raylift("rm", run.uri, "--yes").returncode == 0
    assert json.loads(raylift("audit", *where, "--json").stdout) == []


def test_a_run_takes_nothing_away_of_another_storage_s_run_that_has_its_id_by_now(
    server: ApiServer, options: list[str]
) -> None:
    assert raylift("run", *options, "--detach").returncode == 0
    run = run_of(options)
    other = run_in(f"{run.storage.uri}/elsewhere", run.id)
    other.create(run.job())
    told = json.loads(raylift("status", other.uri, "--json").stdout)
    assert (told["state"], told["reason"]) == (
        "FAILED",
        "nothing of it is in the cluster any more, and it left no result",
    )
    resumed = raylift("resume", other.uri, "--detach")
    assert (resumed.returncode, "Choose another --id" in resumed.stderr) == (2, True)
    assert raylift("stop", "--now", other.uri).returncode == 0
    assert raylift("rm", other.uri, "--yes").returncode == 0
    assert [job["metadata"]["name"] for job in server.all("RayJob")] == [run.id]
    assert json.loads(raylift("status", run.uri, "--json").stdout)["state"] == "PENDING"


@pytest.mark.parametrize("kind", ["cluster", "job of others"])
def test_a_run_takes_nothing_away_that_has_its_id_for_a_name_by_now(
    server: ApiServer, options: list[str], kind: str
) -> None:
    assert raylift_here("run", *options, "--detach").returncode == 0
    run = run_of(options)
    server.delete("RayJob", "raylift", run.id)
    if kind == "cluster":
        assert raylift_here("up", run.id, *options[1:3]).returncode == 0
    else:
        server.create("RayJob", {"metadata": {"name": run.id}, "spec": {"entrypoint": "sleep 1"}}, "raylift")
    told = json.loads(raylift_here("status", run.uri, "--json").stdout)
    assert (told["state"], told["reason"]) == (
        "FAILED",
        "nothing of it is in the cluster any more, and it left no result",
    )
    resumed = raylift_here("resume", run.uri, "--detach")
    assert (resumed.returncode, "Choose another --id" in resumed.stderr) == (2, True)
    assert raylift_here("stop", "--now", run.uri).returncode == 0
    assert raylift_here("rm", run.uri, "--yes").returncode == 0
    assert [job["metadata"]["name"] for job in server.all("RayJob")] == [run.id]


def test_a_launch_that_is_refused_leaves_neither_a_run_nor_a_job(server: ApiServer, options: list[str]) -> None:
    server.admit = lambda kind, _value: "exceeded quota: raylift" if kind.name == "RayJob" else ""
    done = raylift("run", *options, "--detach")
    assert done.returncode == 3
    assert "the quota of the namespace is used up" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.all("RayJob") == []
    assert json.loads(raylift("ps", "--storage", run_of(options).storage.uri, "--json").stdout) == []


def test_a_launch_that_fails_and_cannot_be_undone_leaves_a_run_by_which_its_job_is_found(
    server: ApiServer, options: list[str]
) -> None:
    run = run_of(options)
    server.faults += [Fault("PATCH /api/v1", status=403), Fault("DELETE", status=403, message="deletions are closed")]
    done = raylift("run", *options, "--detach")
    assert done.returncode == 3
    assert f"raylift stop --now {run.uri}, then raylift rm {run.uri}" in done.stderr
    assert len(server.all("RayJob")) == 1
    assert raylift("stop", "--now", run.uri).returncode == 0
    assert raylift("rm", run.uri, "--yes").returncode == 0
    assert server.all("RayJob") == []
    assert not list(run.storage.list(""))


def test_a_followed_run_tells_why_it_waits_shows_its_end_and_is_taken_away(
    server: ApiServer, options: list[str]
) -> None:
    run = run_of(options)
    with start_raylift("run", *options) as process:
        wait_for(lambda: server.all("RayJob"), "the job", timeout=60)
        pods = take_up(server, run.id)
        message = "0/3 nodes are available: 3 Insufficient cpu."
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        name = pods["worker"]["metadata"]["name"]
        server.set_status("Pod", "raylift", name, phase="Pending", conditions=[condition])
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("of 3 nodes: 3 with too little cpu" in line for line in lines)
        server.set_status("Pod", "raylift", name, phase="Running", conditions=[])
        server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Running", jobStatus="RUNNING")
        attempt = run.claim()
        write_rows(attempt, "events", [started(0, at=1.0)])
        attempt.finish(Result(state="SUCCEEDED", step=12))
        server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "SUCCEEDED in" in output
    assert "left over: 0" in output
    for kind in ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret"):
        assert server.all(kind) == []


def test_a_run_that_succeeded_but_may_have_left_something_is_6(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    with start_raylift("run", *options) as process:
        wait_for(lambda: server.all("Secret"), "the launch", timeout=60)
        server.faults.append(Fault("DELETE", status=403, count=99, message="deletions are closed"))
        run.claim().finish(Result(state="SUCCEEDED", step=12))
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 6, output
    assert "SUCCEEDED in" in output
    assert "what is left of it in the cluster is not known: you may not do that: deletions are closed" in output


def test_ctrl_c_leaves_a_run_running_and_says_how_to_follow_stop_and_end_it(
    server: ApiServer, options: list[str]
) -> None:
    with start_raylift("run", *options) as process:
        wait_for(lambda: server.all("Secret"), "the launch", timeout=60)
        assert process.stdout is not None
        assert "run s3://" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 5, output
    for command in ("raylift logs -f", "raylift stop", "raylift stop --now"):
        assert f"{command} {run_of(options).uri}" in output
    assert len(server.all("RayJob")) == 1


def test_a_run_whose_job_failed_without_a_result_is_lost_with_the_reason(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    with start_raylift("run", *options) as process:
        wait_for(lambda: server.all("Secret"), "the launch", timeout=60)
        take_up(server, run.id)
        failed = {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}
        server.set_status("RayJob", "raylift", run.id, **failed)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert "its pods did not start within cluster.pre_running_deadline_seconds" in output


@pytest.mark.parametrize("claimed", [False, True])
def test_a_run_whose_job_is_gone_is_followed_to_its_end_at_once(
    server: ApiServer, options: list[str], claimed: bool
) -> None:
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    if claimed:
        run.claim()
    server.delete("RayJob", "raylift", run.id)
    done = raylift("logs", "-f", run.uri, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "FAILED: nothing of it is in the cluster any more, and it left no result" in done.stdout


def test_followed_logs_go_from_the_pods_on_to_storage_and_outlast_the_pods(
    server: ApiServer, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "k8s.yaml").write_text(BLOCK.replace("image: 'registry.example/raylift:cpu', ", ""))
    run = run_of(options)
    assert raylift_here("run", *options, "--detach").returncode == 0
    silent = raylift_here("logs", run.uri, "--json")
    assert (silent.returncode, silent.stdout) == (0, "")
    assert f"nothing is printed yet. See where it stands: raylift status {run.uri}" in silent.stderr
    head = take_up(server, run.id)["head"]
    server.log(head, b"fetched\n", FETCHING)
    ended = {"name": FETCHING, "image": "x", "state": {"terminated": {"exitCode": 0}}, "ready": False}
    server.set_status("Pod", "raylift", head["metadata"]["name"], phase="Pending", initContainerStatuses=[ended])
    server.log(first := submit(server, run.id), b"submitted\nread")
    launch = [{"attempt": 0, "writer": "launch", "line": line} for line in ("fetched", "submitted", "read")]
    assert [json.loads(line) for line in raylift_here("logs", run.uri, "--json").stdout.splitlines()] == launch
    with following(run) as (process, told):
        wait_for(lambda: "launch: submitted" in told, "what was submitted", timeout=60)
        server.log(first, b"ing\n")
        wait_for(lambda: "launch: reading" in told, "the whole line", timeout=60)
        server.delete("Pod", "raylift", first["metadata"]["name"])
        server.log(second := submit(server, run.id, "second"), b"reading\nclaiming\n")
        wait_for(lambda: "launch: claiming" in told, "the next pod", timeout=60)
        attempt = run.claim()
        server.log(second, f"{IN_STORAGE} 1\none\n".encode())
        output = SegmentWriter(run, 1, "logs", "driver")
        output.append_bytes(b"one\n")
        output.flush()
        wait_for(lambda: "driver: one" in told, "what is in storage", timeout=60)
        server.delete("Pod", "raylift", second["metadata"]["name"])
        output.append_bytes(b"two\n")
        output.close()
        attempt.finish(Result(state="SUCCEEDED", step=12))
        server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
        assert process.wait(60) == 0, told
    launched = [f"launch: {line}" for line in ("fetched", "submitted", "reading", "claiming")]
    assert [line for line in told if line.startswith(("launch: ", "driver: "))] == [
        *launched,
        "driver: one",
        "driver: two",
    ]
    assert told[-1] == "SUCCEEDED"
    done = raylift("logs", "-f", run.uri, "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"attempt": 1, "writer": "driver", "line": line} for line in ("one", "two")
    ]


def test_logs_of_a_resume_that_is_still_to_begin_are_not_those_of_the_attempt_before(
    server: ApiServer, options: list[str]
) -> None:
    run = run_of(options)
    assert raylift_here("run", *options, "--detach").returncode == 0
    run.claim().finish(Result(state="STOPPED", exit_code=4))
    server.delete("RayJob", "raylift", run.id)
    assert raylift_here("resume", run.uri, "--detach").returncode == 0
    take_up(server, run.id)
    with following(run) as (process, told):
        server.log(submit(server, run.id), b"again\n")
        wait_for(lambda: "launch: again" in told, "what the next launch prints", timeout=60)
        server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Running", jobStatus="RUNNING")
        run.claim().finish(Result(state="SUCCEEDED"))
        server.delete("RayJob", "raylift", run.id)
        assert process.wait(60) == 0, told
    assert told[-1] == "SUCCEEDED"


def test_stop_now_ends_a_run_and_resume_launches_it_again(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    run.claim()
    refused = raylift("resume", run.uri, "--detach")
    assert refused.returncode == 2
    assert "is running already, on its cluster" in refused.stderr
    first = server.all("RayJob")[0]["metadata"]["uid"]
    assert raylift("stop", run.uri, "--now").returncode == 0
    assert server.all("RayJob") == []
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    assert (told["state"], told["reason"]) == ("STOPPED", "stopped by raylift stop")
    resumed = raylift("resume", run.uri, "--detach")
    assert resumed.returncode == 0, resumed.stderr
    assert server.all("RayJob")[0]["metadata"]["uid"] != first
    assert run.stop_reason() is None


@pytest.mark.parametrize(
    ("between", "there"),
    [
        ("launcher.submit.check_storage", True),
        ("launcher.submit.check_storage", False),
        ("cluster.kubernetes.provider.KubernetesProvider._existing", True),
    ],
)
def test_of_two_laptops_that_resume_a_run_at_once_one_leaves_the_job_of_the_other_alone(
    server: ApiServer, options: list[str], monkeypatch: pytest.MonkeyPatch, between: str, there: bool
) -> None:
    run = run_of(options)
    assert raylift_here("run", *options, "--detach").returncode == 0
    run.claim()
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Failed", jobStatus="FAILED")
    if not there:
        server.delete("RayJob", "raylift", run.id)
    others: list[str] = []
    with monkeypatch.context() as patch:

        def other_laptop(*_: object) -> list[object]:
            patch.undo()
            assert raylift("resume", run.uri, "--detach").returncode == 0
            others.append(server.all("RayJob")[0]["metadata"]["uid"])
            return []

        patch.setattr(between, other_laptop)
        refused = raylift_here("resume", run.uri, "--detach")
    assert refused.returncode == 2
    assert f"{run.uri} goes on: " in refused.stderr
    assert "somebody else has launched it. Follow it: raylift logs -f" in refused.stderr
    assert [job["metadata"]["uid"] for job in server.all("RayJob")] == others


def test_what_a_launch_left_that_is_over_is_taken_away_and_nothing_of_the_next(
    server: ApiServer, kubernetes: KubernetesProvider, options: list[str]
) -> None:
    run = run_of(options)
    assert raylift_here("run", *options, "--detach").returncode == 0
    seen = launch_of(run, kubernetes)
    server.delete("RayJob", "raylift", run.id)
    run.claim()
    assert raylift_here("resume", run.uri, "--detach").returncode == 0
    with pytest.raises(RunExistsError, match=f"{run.uri} goes on: .* end it at once: raylift stop --now {run.uri}"):
        tear_down_remote(run, kubernetes, launch=seen)
    assert len(server.all("RayJob")) == len(server.all("Secret")) == 1
    assert not tear_down_remote(run, kubernetes, launch=launch_of(run, kubernetes)).leftovers
    assert server.all("RayJob") == server.all("Secret") == []


@pytest.mark.parametrize("command", [("stop", "--now"), ("rm", "--yes")])
def test_what_ends_a_run_leaves_a_launch_alone_that_comes_meanwhile_and_says_that_it_goes_on(
    server: ApiServer, options: list[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, str]
) -> None:
    run = run_of(options)
    assert raylift_here("run", *options, "--detach").returncode == 0
    run.claim()
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Failed", jobStatus="FAILED")
    with monkeypatch.context() as patch:

        def other_laptop(*_: object) -> list[object]:
            patch.undo()
            assert raylift("resume", run.uri, "--detach").returncode == 0
            return []

        patch.setattr(KubernetesProvider, "_existing", other_laptop)
        refused = raylift_here(command[0], run.uri, command[1])
    assert refused.returncode == 2
    assert f"{run.uri} goes on: " in refused.stderr
    assert f"end it at once: raylift stop --now {run.uri}" in refused.stderr
    assert len(server.all("RayJob")) == 1
    assert run.attempts() == [1]


def test_a_run_whose_cluster_is_gone_for_good_is_removed_without_it(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    assert raylift_here("run", *options, "--detach").returncode == 0
    server.faults.append(Fault("", status=503, count=9999))  # as good as none that answers
    for command in (("stop", "--now"), ("rm", "--yes")):
        done = raylift_here(command[0], run.uri, command[1])
        assert done.returncode == 3
        assert f"gone for good, remove the run alone: raylift rm --abandon-cluster {run.uri}" in done.stderr
    server.faults = [Fault("", status=403, count=9999)]  # it has answered
    assert "gone for good" not in raylift_here("rm", run.uri, "--yes").stderr
    asked = len(server.calls)
    attempt = run.claim()
    claim = {**dataclasses.asdict(attempt.claim), "host": "its-head"}
    run.storage.write(run.path("attempts/000001/claim.json"), json.dumps(claim).encode())
    refused = raylift_here("rm", run.uri, "--abandon-cluster", "--yes")
    assert (refused.returncode, "heard from it" in refused.stderr) == (2, True)
    attempt.finish(Result(state="STOPPED", exit_code=4))
    done = raylift_here("rm", run.uri, "--abandon-cluster", "--yes")
    assert done.returncode == 0, done.stderr
    assert (
        "not looked for: what may be left of it in the namespace raylift of the context that was current" in done.stdout
    )
    assert not list(run.storage.list(""))
    assert len(server.calls) == asked


def test_a_run_on_a_cluster_with_a_name_is_resumed_there_for_as_long_as_it_is_there(
    server: ApiServer, options: list[str]
) -> None:
    run, on = run_of(options), options[1:3]
    assert raylift_here("up", "dev", *on).returncode == 0
    cluster = take_up(server, "dev")["cluster"]["metadata"]["name"]
    server.set_status("RayJob", "raylift", "dev", jobDeploymentStatus="Running", jobStatus="RUNNING")
    paid = ("--set", "cluster.usd_per_hour=98")  # by whoever has made it: nobody is asked again
    done = raylift_here("run", *options, "--cluster", "dev", "--detach", *paid)
    assert done.returncode == 0, done.stderr
    run.claim()
    assert raylift_here("stop", run.uri, "--now").returncode == 0
    assert server.get("RayJob", "raylift", run.id) is None
    resumed = raylift_here("resume", run.uri, "--detach")
    assert resumed.returncode == 0, resumed.stderr
    job = server.get("RayJob", "raylift", run.id)
    assert job is not None
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster}
    assert raylift_here("down", "dev", *on, "--yes").returncode == 0
    assert server.all("RayJob") == []
    refused = raylift_here("resume", run.uri, "--detach")
    assert refused.returncode == 2
    assert "there is no cluster dev in the namespace raylift" in refused.stderr


@pytest.mark.parametrize("deployment", ["", "Suspended", "Initializing"])
def test_a_stop_takes_away_a_run_that_waits_and_leaves_one_that_trains_to_save(
    server: ApiServer, options: list[str], deployment: str
) -> None:
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert "is asked to save and stop" in raylift("stop", run.uri).stdout
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus=deployment)
    done = raylift("stop", run.uri)
    assert (done.returncode, done.stdout) == (0, "ended 1 objects; 0 left\n")
    assert server.all("RayJob") == server.all("Secret") == []
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    assert (told["state"], told["reason"]) == ("STOPPED", "stopped by raylift stop")
    assert raylift("rm", run.uri, "--yes").returncode == 0


def stopped_once(server: ApiServer, options: list[str]) -> Run:
    """Return a run that a person had save and stop, and whose pods are gone."""
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    run.claim().finish(Result(state="STOPPED", message="stopped by raylift stop", exit_code=4))
    server.delete("RayJob", "raylift", run.id)
    return run


@pytest.mark.parametrize("state", ["Initializing", "Running"])
def test_a_resumed_run_that_has_not_begun_is_seen_and_can_be_stopped(
    server: ApiServer, options: list[str], state: str
) -> None:
    run = stopped_once(server, options)
    assert json.loads(raylift("status", run.uri, "--json").stdout)["state"] == "STOPPED"
    assert raylift("resume", run.uri, "--detach").returncode == 0
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus=state, jobStatus="PENDING")
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    assert (told["state"], told["attempt"]) == ("RUNNING" if state == "Running" else "PROVISIONING", 1)
    done = raylift("stop", run.uri)  # a driver that has begun and claimed nothing yet hears of it from storage
    assert done.returncode == 0, done.stderr
    assert (run.stop_reason(), len(server.all("RayJob"))) == ("stopped by raylift stop", int(state == "Running"))
    assert raylift("stop", run.uri, "--now").returncode == 0
    assert server.all("RayJob") == server.all("Secret") == []
    assert "is over already: STOPPED" in raylift("stop", run.uri).stdout
    assert json.loads(raylift("status", run.uri, "--json").stdout)["state"] == "STOPPED"
    assert raylift("rm", run.uri, "--yes").returncode == 0


def test_a_resumed_run_hears_of_a_stop_from_a_machine_that_knows_no_cluster(
    server: ApiServer, options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = stopped_once(server, options)
    assert raylift("resume", run.uri, "--detach").returncode == 0
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    assert "is asked to save and stop" in raylift("stop", run.uri).stdout
    assert run.stop_reason() == "stopped by raylift stop"
    assert json.loads(raylift("status", run.uri, "--json").stdout)["state"] == "STOPPED"


def test_a_laptop_that_dies_in_the_middle_of_a_resume_leaves_what_resume_completes(
    server: ApiServer, options: list[str]
) -> None:
    run, of_the_secret = stopped_once(server, options), "PATCH /api/v1"
    server.faults.append(Fault(of_the_secret, count=99))
    before = len(server.calls)
    with start_raylift("resume", run.uri, "--detach") as process:
        wait_for(lambda: any(call.startswith(of_the_secret) for call in server.calls[before:]), "a Secret", timeout=60)
        process.kill()
    assert (len(server.all("RayJob")), server.all("Secret")) == (1, [])
    server.faults.clear()
    resumed = raylift("resume", run.uri, "--detach")
    assert resumed.returncode == 0, resumed.stderr
    (job,), (secret,) = server.all("RayJob"), server.all("Secret")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    run.claim()  # its driver has come to life
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert "is running already" in raylift("resume", run.uri, "--detach").stderr


@pytest.mark.parametrize("at", ["GET /apis/ray.io", "PATCH /apis/ray.io", "PATCH /api/v1"])
def test_a_laptop_that_dies_in_the_middle_of_a_launch_leaves_what_resume_completes(
    server: ApiServer, options: list[str], at: str
) -> None:
    run = run_of(options)
    server.faults.append(Fault(at, after=True))  # done, but the laptop does not live to hear so
    with start_raylift("run", *options, "--detach") as process:
        wait_for(lambda: [call for call in server.calls if call.startswith(at)], at, timeout=60)
        process.kill()
    server.faults.clear()
    resumed = raylift("resume", run.uri, "--detach")
    assert resumed.returncode == 0, resumed.stderr
    (job,), (secret,) = server.all("RayJob"), server.all("Secret")
    assert job["metadata"]["generation"] == 1
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_laptop_that_dies_at_any_write_to_storage_of_a_launch_leaves_what_is_completed(
    server: ApiServer, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    (tmp_path / "k8s.yaml").write_text(BLOCK.replace("image: 'registry.example/raylift:cpu', ", ""))
    run, command = run_of(options), ("run", *options, "--detach")
    for last in itertools.count():
        with monkeypatch.context() as patch:
            writes = _die_at_write(patch, last, before=before)
            with contextlib.suppress(Death):
                assert raylift_here(*command).returncode == 0
                assert len(writes) == last >= 2  # the bundle and the job file, at least
                return
        resumed = raylift_here("resume", run.uri, "--detach")
        if resumed.returncode:
            assert "there is no run" in resumed.stderr
            assert raylift_here(*command).returncode == 0
        (job,), (secret,) = server.all("RayJob"), server.all("Secret")
        assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
        assert raylift_here("stop", run.uri, "--now").returncode == 0
        assert raylift_here("rm", run.uri, "--yes").returncode == 0
        assert server.all("RayJob") == server.all("Secret") == []
        assert not list(run.storage.list(""))


def test_a_laptop_that_dies_in_the_middle_of_a_teardown_leaves_what_the_next_one_removes(
    server: ApiServer, options: list[str]
) -> None:
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    take_up(server, run.id, finalizer=True)
    with start_raylift("stop", run.uri, "--now") as process:
        wait_for(lambda: [call for call in server.calls if call.startswith("DELETE")], "the teardown", timeout=60)
        process.kill()
    server.change("RayJob", "raylift", run.id, lambda value: value["metadata"].update(finalizers=[]))
    done = raylift("stop", run.uri, "--now")
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("RayJob", "RayCluster", "Pod", "Service", "Job", "Secret"):
        assert server.all(kind) == []


def test_a_run_is_removed_with_its_job_and_not_while_it_runs(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    refused = raylift("rm", run.uri, "--yes")
    assert refused.returncode == 2
    assert "is running. Stop it first" in refused.stderr
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Complete")
    assert raylift("rm", run.uri, "--yes").returncode == 0
    assert server.all("RayJob") == server.all("Secret") == []
    assert not list(run.storage.list(""))


def test_a_run_of_which_something_stays_is_kept_until_that_is_gone(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    assert raylift_here("run", *options, "--detach").returncode == 0
    take_up(server, run.id, finalizer=True)
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Complete")
    done = raylift_here("rm", run.uri, "--yes")
    assert done.returncode == 6
    assert f"left over: RayJob {run.id} raylift, being deleted, held by ray.io/rayjob-finalizer" in done.stdout
    assert f"Once that is gone: raylift rm {run.uri}" in done.stdout
    assert json.loads(raylift_here("rm", run.uri, "--yes", "--json").stdout)["objects"] == 0
    server.change("RayJob", "raylift", run.id, lambda value: value["metadata"].update(finalizers=[]))
    done = raylift_here("rm", run.uri, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(run.storage.list(""))


def test_what_stays_after_stop_now_is_named_and_the_exit_code_is_6(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    take_up(server, run.id, finalizer=True)
    done = CliRunner().invoke(app, ["stop", run.uri, "--now"])  # here, where it does not wait for a minute
    assert done.exit_code == 6
    assert f"left over: RayJob {run.id} raylift, being deleted, held by ray.io/rayjob-finalizer" in done.stdout


@pytest.mark.parametrize("command", [("stop", "--now"), ("rm", "--yes"), ("down", "--yes")])
def test_what_a_command_waits_for_is_said_to_people_on_standard_error(
    server: ApiServer, options: list[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, str]
) -> None:
    monkeypatch.setattr(waiting, "_PATIENCE", 0.1)
    run = run_of(options)
    if command[0] == "down":
        assert raylift_here("up", run.id, *options[1:3]).returncode == 0
        words = [*command, run.id, *options[1:3]]
    else:
        assert raylift_here("run", *options, "--detach").returncode == 0
        words = [*command, run.uri]
    take_up(server, run.id, finalizer=True)
    server.set_status("RayJob", "raylift", run.id, jobDeploymentStatus="Complete" if command[0] == "rm" else "Running")
    assert "waiting for" not in raylift_here(*words, "--json").stderr
    done = raylift_here(*words)
    assert done.returncode == 6
    assert f"waiting for: RayJob {run.id}" in done.stderr
    assert "waiting for" not in done.stdout


def test_a_run_that_is_over_says_what_its_taking_away_waits_for(
    server: ApiServer, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_PATIENCE", 0.1)
    run = run_of(options)

    def ends() -> None:
        wait_for(lambda: server.all("Secret"), "the launch", timeout=60)
        take_up(server, run.id, finalizer=True)
        run.claim().finish(Result(state="SUCCEEDED", step=12))

    thread = threading.Thread(target=ends)
    thread.start()
    done = raylift_here("run", *options)
    thread.join()
    assert done.returncode == 6, done.stdout
    assert f"waiting for: RayJob {run.id}" in done.stdout


def test_a_cluster_that_does_not_answer_does_not_hide_what_storage_knows(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    write_rows(run.claim(), "events", [started(0, at=1.0)])
    server.tokens.clear()
    told = json.loads(raylift("status", run.uri, "--json").stdout)
    assert told["state"] == "RUNNING"
    assert told["reason"].startswith("as far as storage tells: ")
    assert told["attempt"] == 1
    assert "is asked to save and stop" in raylift("stop", run.uri).stdout
    assert run.stop_reason() == "stopped by raylift stop"


def test_ps_asks_no_cluster(server: ApiServer, options: list[str]) -> None:
    run = run_of(options)
    assert raylift("run", *options, "--detach").returncode == 0
    before = len(server.calls)
    told = json.loads(raylift("ps", "--storage", run.storage.uri, "--json").stdout)
    assert [each["state"] for each in told] == ["PENDING"]
    assert len(server.calls) == before
