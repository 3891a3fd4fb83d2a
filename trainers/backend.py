"""Ray and Ray Train for this project: the one file that knows their inner parts.

Start-up is what people feel, and every Python process that Ray starts costs seconds of a laptop's processor. So a Ray
of our own starts without the parts that serve a dashboard, a driver's screen or an autoscaler, and Ray Train without
its actors for datasets and autoscaling. Where a version of Ray has another inside, all of it is left as Ray has it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any

import psutil
import ray
from ray.train import BackendConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from trainers import notice

_ENVIRONMENT = {
    "RAY_TRAIN_METRICS_ENABLED": "0",  # Prometheus metrics of the controller
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a run's processes are known by their working directory
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead rank is noticed, and a finished one, in half a second
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a rank prints is shipped as it is
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it starts the ranks again by itself; see is_draining
}
_UNREACHABLE_AFTER = 30  # seconds without an answer from a rank on another machine; Ray itself waits ten minutes
_UNREACHABLE = "WorkerHealthCheckTimeoutError"
_SPARED_PROCESSES = ("start_monitor", "start_log_monitor", "start_api_server")
_SPARED_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")


def start_ray(*, cpus: int, temp_folder: str | None) -> None:
    """Start a single-node Ray of our own, of gcs_server and raylet with its agents alone."""
    with _without_spared_processes():
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=temp_folder,
            _system_config={"enable_worker_prestart": False, "prestart_worker_first_driver": False},
            **_quoted_python(),
        )


def join_ray(address: str) -> None:
    """Attach to a Ray that runs already."""
    ray.init(address=address, log_to_driver=False, configure_logging=False)


def build_trainer(
    function: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    workers: int,
    gpus: bool,
    scratch: str,
    own_ray: bool,
) -> DataParallelTrainer:
    """Return a trainer whose `fit` runs `function(config)` on every rank, once: a failure is the caller's to retry."""
    os.environ.update(_ENVIRONMENT)
    if not own_ray:
        os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(_UNREACHABLE_AFTER))
    return (_LocalTrainer if own_ray else DataParallelTrainer)(
        function,
        train_loop_config=config,
        backend_config=ProcessGroupConfig(own_ray=own_ray),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(name="train", storage_path=scratch, failure_config=_never_again()),
    )


def _never_again() -> FailureConfig:
    """Have a failure end `fit`, whatever it was: ranks that start again belong to another attempt."""
    budgets = {field.name for field in fields(FailureConfig)}
    more: dict[str, Any] = (
        {"max_preemption_failures": 0} if "max_preemption_failures" in budgets else {}
    )  # since Ray 2.60
    return FailureConfig(max_failures=0, **more)


def is_draining() -> bool:
    """Whether this process is on a node that its cluster's autoscaler, or a person, is about to take away."""
    from ray._private.state import state

    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()


def is_unreachable(error: Exception) -> bool:
    """Whether Ray Train gave a rank up because it no longer answered."""
    return type(error).__name__ == _UNREACHABLE


@dataclass
class ProcessGroupConfig(BackendConfig):
    """Give every rank what torchrun would give it; the ranks join their process group themselves."""

    own_ray: bool = True  # nobody takes a node of it away with a notice

    @property
    def backend_cls(self) -> type[ProcessGroupBackend]:
        return ProcessGroupBackend


class ProcessGroupBackend(Backend):
    """Sets torchrun's environment on the workers; torch is imported there alone."""

    share_cuda_visible_devices = True  # NCCL finds the peers of a node only if all see all its devices

    def on_start(self, worker_group: Any, config: BackendConfig) -> None:
        joined = {} if getattr(config, "own_ray", True) else {notice.JOINED: "1"}
        address, port = worker_group.execute_single(0, _free_address)
        contexts = [worker.distributed_context for worker in worker_group.get_workers()]
        started = [
            worker_group.execute_single_async(
                index,
                _set_environment,
                {
                    "MASTER_ADDR": address,
                    "MASTER_PORT": str(port),
                    "RANK": str(context.world_rank),
                    "WORLD_SIZE": str(context.world_size),
                    "LOCAL_RANK": str(context.local_rank),
                    "LOCAL_WORLD_SIZE": str(context.local_world_size),
                    **joined,
                },
            )
            for index, context in enumerate(contexts)
        ]
        ray.get(started)


class _LocalTrainer(DataParallelTrainer):
    """Ray Train on a Ray of our own: the supervisor ends the whole of it, nothing scales, no Ray dataset is read."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in _SPARED_CALLBACKS]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = arguments.get("scaling_policy")
        if hasattr(policy, "_maybe_send_resource_request"):
            arguments["scaling_policy"] = _without_autoscaling(policy)
        return super()._initialize_and_run_controller(**arguments)


def _without_autoscaling(policy: Any) -> Any:
    """Return a scaling policy that asks no autoscaler: there is none."""

    class Fixed(type(policy)):  # type: ignore[misc]
        def after_controller_start(self, *_: Any, **__: Any) -> None: ...

        def _maybe_send_resource_request(self) -> None: ...

        def _send_resource_request(self) -> None: ...

        def _cancel_resource_request(self) -> None: ...

    return Fixed(policy.scaling_config)


@contextlib.contextmanager
def _without_spared_processes() -> Iterator[None]:
    """Have Ray's node start without the processes that a run has no use for."""
    from ray._private.node import Node

    spared = {name: getattr(Node, name) for name in _SPARED_PROCESSES if hasattr(Node, name)}
    for name in spared:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in spared.items():
            setattr(Node, name, method)


def _quoted_python() -> dict[str, Any]:
    """Return what lets workers start where Python's path has a space: Ray hands it to a shell as it is."""
    quoted = shlex.quote(sys.executable)
    return {"runtime_env": {"py_executable": quoted}} if quoted != sys.executable else {}


def _free_address() -> tuple[str, int]:
    with closing(socket.socket()) as server:
        server.bind(("", 0))
        return ray.util.get_node_ip_address(), server.getsockname()[1]


def _set_environment(values: dict[str, str]) -> None:
    os.environ.update(values)
    if values["LOCAL_WORLD_SIZE"] != values["WORLD_SIZE"] and (interface := _interface_of_this_node()) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)  # else it takes what the host's name means, if anything
    notice.listen()  # here, as the ranks train in a thread


def _interface_of_this_node() -> str | None:
    """Return the network interface that has the address by which Ray knows this machine."""
    address = ray.util.get_node_ip_address()
    found = (name for name, ones in psutil.net_if_addrs().items() for one in ones if one.address == address)
    return next(found, None)
