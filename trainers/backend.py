"""Ray and Ray Train for this project: the one file that knows their inner parts.

Start-up is what people feel, and every Python process that Ray starts costs seconds of a laptop's processor. So a Ray
of our own starts without the parts that serve a dashboard, a driver's screen or an autoscaler, and Ray Train without
its actors for datasets and autoscaling. Where a version of Ray has another inside, all of it is left as Ray has it.

On a Ray that runs already, Ray Train's elastic scaling says how many ranks an attempt has.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import psutil
import ray
from ray import PlacementGroupID
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.train import BackendConfig, FailureConfig, RunConfig
from ray.train.backend import Backend
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup

from cluster.config import Workers
from cluster.errors import InfrastructureError
from cluster.ticket import VARIABLES
from trainers import elastic, notice
from trainers.elastic import Room

_ENVIRONMENT = {
    "RAY_TRAIN_METRICS_ENABLED": "0",  # Prometheus metrics of the controller
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a run's processes are known by their working directory
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead rank is noticed, and a finished one, in half a second
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a rank prints is shipped as it is
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it starts the ranks again by itself; see seconds_until_drained
}
_UNREACHABLE_AFTER = 30  # seconds without an answer from a rank on another machine; Ray itself waits ten minutes
_UNREACHABLE = "WorkerHealthCheckTimeoutError"
_ELASTIC = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # room that was there may be gone: it is looked for anew
}
_LOOK = 5.0  # seconds between looks for how many ranks there is room
_PAUSE = 0.5  # seconds between them, while no rank runs
_ANSWER = 1.0  # seconds that a node has to answer
_ASK = 2.0  # seconds between asking the nodes that ranks are on
_MISSES = 3  # in a row, after which a node is lost
_PATIENT_ANSWER = 4.0  # seconds: what opens a connection is sent three times in these, should a packet be lost
_SPARED_PROCESSES = ("start_monitor", "start_log_monitor", "start_api_server")
_SPARED_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
_WARN_OF_WAITS = "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"  # Ray Train sets it for its controller
_AT_START = "trainers.spares.import_what_ranks_need"
_LONG = 10 * 365 * 86400  # seconds that a spare process waits at most; Ray ends it with the run
_PATIENCE = 10.0  # seconds for Ray to answer


def start_ray(*, cpus: int, temp_folder: str | None) -> None:
    """Start a single-node Ray of our own, of gcs_server and raylet with its agents alone."""
    with without_spared_processes():
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
    """Attach to a Ray that runs already; the ranks get what variables this process was handed for them."""
    names = filter(None, os.environ.get(VARIABLES, "").split(","))
    handed = {name: os.environ[name] for name in names}
    runtime_env = {"env_vars": handed} if handed else None
    ray.init(address=address, log_to_driver=False, configure_logging=False, runtime_env=runtime_env)


def look_for_room(*, gpus: bool) -> list[Room]:
    """Return for how many ranks each node of Ray has room."""
    return _rooms(_one_rank(gpus), Counter())


class Wish:
    """Room for some ranks, set aside once it is there: so Ray's autoscaler, where it has one, hears of it."""

    def __init__(self, ranks: int, *, gpus: bool) -> None:
        self._group = ray.util.placement_group([_one_rank(gpus)] * ranks)

    def is_granted(self) -> bool:
        return bool(self._group.wait(timeout_seconds=0.1))

    def withdraw(self) -> None:
        """Give the room back, for the ranks to take."""
        ray.util.remove_placement_group(self._group)


def _one_rank(gpus: bool) -> dict[str, float]:
    return {"GPU": 1.0} if gpus else {"CPU": 1.0}


@dataclass(frozen=True)
class Wait:
    """How long ranks wait for room on a Ray that runs already."""

    seconds: float = 60.0  # then it is the driver's to wait for, who tells
    is_over: Callable[[], bool] | None = None  # asked meanwhile, in the process of Ray Train's controller


def build_trainer(
    function: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    workers: Workers,
    gpus: bool,
    scratch: str,
    own_ray: bool,
    wait: Wait = Wait(),
) -> DataParallelTrainer:
    """Return a trainer whose `fit` runs `function(config)` on every rank, once: a failure is the caller's to retry.

    On a Ray of our own there are `workers.min` ranks, elsewhere as many of them as there is room for. Where there
    comes to be room for more, `elastic.tell_room` is called in rank 0's process.
    """
    os.environ.update(_ENVIRONMENT)
    if not own_ray:
        os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(_UNREACHABLE_AFTER))
        os.environ.update(_ELASTIC)
    number = workers.min if own_ray else (workers.min, workers.max)
    kind: Callable[..., DataParallelTrainer] = _LocalTrainer if own_ray else partial(_ElasticTrainer, wait=wait)
    return kind(
        function,
        train_loop_config=config,
        backend_config=ProcessGroupConfig(own_ray=own_ray),
        scaling_config=ScalingConfig(num_workers=number, use_gpu=gpus, elastic_resize_monitor_interval_s=_LOOK),
        run_config=RunConfig(  # type: ignore[call-arg]  # what type checkers see is the class of Ray Train's first version
            name="train",
            storage_path=scratch,
            failure_config=_never_again(),
            worker_runtime_env=_standing_by() if own_ray else None,
        ),
    )


def _never_again() -> FailureConfig:
    """Have a failure end `fit`, whatever it was: ranks that start again belong to another attempt."""
    none: dict[str, Any] = {"max_failures": 0, "max_preemption_failures": 0}  # the second one since Ray 2.60
    return FailureConfig(**{field.name: none[field.name] for field in fields(FailureConfig) if field.name in none})


def release_resources(controller: str = "") -> None:
    """Release what the ranks of a controller that died held, by its actor id; or of all that this driver has lost.

    Ray does it when the driver ends, and not before.
    """
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    job = ray.get_runtime_context().get_job_id()
    for row in state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(row)  # type: ignore[attr-defined]
        creator = group.creator_actor_id.hex()
        of_an_actor = bool(creator.strip("f"))  # else a driver's own, as those that Tune trains trials in
        is_lost = of_an_actor and group.creator_actor_dead and group.creator_job_id.hex() == job
        if creator == controller if controller else is_lost:
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def seconds_until_drained() -> float | None:
    """Return when its cluster's autoscaler, or a person, takes the node of this process away, infinity if ever.

    None where nobody is about to. Raises RuntimeError where Ray does not say.
    """
    from ray._private.state import state
    from ray.exceptions import RayError

    try:
        deadline = state.get_draining_nodes().get(ray.get_runtime_context().get_node_id())
    except RayError as error:
        raise RuntimeError(f"Ray does not say which nodes it drains: {error}") from error
    if deadline is None:
        return None
    return deadline / 1000 - time.time() if deadline else math.inf


def causes_of(error: Exception) -> dict[int, Exception]:
    """Return what each lost rank died of, as it was raised there."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return {rank: _root(failure) for rank, failure in sorted(failures.items())}


def _root(failure: Exception) -> Exception:
    """Take off what Ray Train wraps around what a rank raised, or around what became of its process."""
    for wrapping in ("_base_exc", "health_check_failure"):
        failure = getattr(failure, wrapping, failure)
    return failure


def is_unreachable(error: Exception) -> bool:
    """Whether Ray Train gave a rank up because it no longer answered."""
    return type(error).__name__ == _UNREACHABLE


def _standing_by() -> dict[str, Any]:
    """Return the environment that ranks share with their spares: each begins with what takes long to import."""
    return {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: _AT_START}}


def start_first_ranks(count: int) -> None:
    """Start processes on this machine that Ray will take for its first ranks: its controller takes as long to start.

    Returns at once. Raises as `start_spares` does.
    """
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    os.environ.update(_ENVIRONMENT)
    variables = {_WARN_OF_WAITS: "0", **get_env_vars_to_propagate(), **_standing_by()["env_vars"]}
    _start_processes(count, json.dumps({"env_vars": variables}, separators=(",", ":"), sort_keys=True))


def start_spares(count: int) -> None:
    """Start processes on this machine that Ray will take for ranks; called on a rank, whose environment they share.

    Returns at once. Raises what Ray does, and AttributeError or ImportError where it is another inside.
    """
    _start_processes(count, ray.get_runtime_context().get_runtime_env_string())


def _start_processes(count: int, environment: str) -> None:
    """Start processes in a runtime environment: Ray takes them where it writes that down in the very same words."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    node: Any = ray._private.worker._global_node
    request = node_manager_pb2.PrestartWorkersRequest(  # type: ignore[attr-defined]
        language=common_pb2.Language.PYTHON,  # type: ignore[attr-defined]
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        num_workers=count,
        keep_alive_duration_secs=_LONG,
    )
    request.runtime_env_info.serialized_runtime_env = environment
    with init_grpc_channel(f"{node.node_ip_address}:{node.node_manager_port}") as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_PATIENCE)


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
        assert isinstance(config, ProcessGroupConfig)
        joined = {} if config.own_ray else {notice.JOINED: "1"}
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


class _LeanTrainer(DataParallelTrainer):
    """Ray Train without what a run has no use for.

    No Ray dataset is read, and the ranks' resources go back with the driver, however that ends.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in _SPARED_CALLBACKS]


class _LocalTrainer(_LeanTrainer):
    """Ray Train on a Ray of our own: the supervisor ends the whole of it, and nothing scales.

    Its controller, a process that takes seconds to start, serves one attempt after the other.
    """

    _controller: ClassVar[Any] = None  # of the attempt before

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = arguments.get("scaling_policy")
        if hasattr(policy, "_maybe_send_resource_request"):
            arguments["scaling_policy"] = _without_autoscaling(policy)
        controller = _LocalTrainer._controller
        if controller is not None and _begins_again(controller, arguments):
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())
        return super()._initialize_and_run_controller(**arguments)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Keep the controller that Ray Train has just made."""
        _LocalTrainer._controller = controller
        super()._register_sigint_handler(controller)


def _begins_again(controller: Any, arguments: dict[str, Any]) -> bool:
    """Have a controller forget the attempt before and make ready for another; return whether it can."""
    try:
        ray.get(controller.__ray_call__.remote(_initialize, arguments))
    except (ray.exceptions.RayError, AttributeError):  # it is gone, or this Ray cannot
        return False
    return True


def _initialize(controller: Any, arguments: dict[str, Any]) -> None:
    controller.__init__(**arguments)


class _ElasticTrainer(_LeanTrainer):
    """Ray Train on a Ray that runs already, whose nodes come and go."""

    def __init__(self, *arguments: Any, wait: Wait, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._wait = wait

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["scaling_policy"] = _with_wishes(arguments["scaling_policy"], self._wait)
        return super()._initialize_and_run_controller(**arguments)


def _with_wishes(policy: Any, wait: Wait) -> Any:
    """Return Ray's elastic policy, but for two things.

    What there is room for, it sees for itself: Ray notices a lost node after a quarter of a minute, a new one after
    up to twenty seconds, and not at all what others hold. And where Ray ends running ranks to change their number,
    with no time for a save, it tells them, and they end when they have saved.
    """
    from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

    class Wishing(type(policy)):  # type: ignore[misc]
        def __init__(self, scaling_config: ScalingConfig) -> None:
            super().__init__(scaling_config)
            self._own: Counter[str] = Counter()  # ranks that run, by node
            self._reach: Reach | None = None  # made in the controller, where this is sent
            self._nodes: list[str] = []  # with room
            self._began: float | None = None
            self._seen: int | None = None
            self._told: int | None = None

        def make_decision_for_non_running_worker_group(self) -> Any:
            self._began = self._began or time.monotonic()
            self._own.clear()
            decision = super().make_decision_for_non_running_worker_group()
            if isinstance(decision, NoopDecision):
                least = self.scaling_config.min_workers
                if wait.is_over is not None and wait.is_over():
                    raise InfrastructureError(f"nobody waits any more for room for the {least} workers")
                if time.monotonic() - self._began > wait.seconds:
                    raise InfrastructureError(f"there is no room any more for the {least} workers that it needs")
                time.sleep(_PAUSE)
            return decision

        def on_controller_start_worker_group(self, **_: Any) -> dict[str, str]:
            return {RAY_NODE_ID_KEY: f"in({','.join(self._nodes)})"}

        def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
            nodes = [worker.metadata.node_id for worker in worker_group_state.workers]
            self._own = Counter(nodes)
            self._reach = self._reach or Reach()
            if (lost := self._reach.lost(self._own)) is not None:
                where = "its machine is off, or cut off from this one"
                raise InfrastructureError(f"rank {nodes.index(lost)} no longer answers: {where}")
            looked = self._latest_monitor_time
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if self._latest_monitor_time != looked:
                now = len(worker_group_state.workers)
                room = decision.num_workers if isinstance(decision, ResizeDecision) else now
                if room == self._seen != self._told:  # twice: nodes often come one after another
                    worker_group_state.workers[0].execute_async(elastic.tell_room, room)
                    self._told = room
                self._seen = room
            return NoopDecision()

        def _get_reserved_resources(self) -> Any:
            needs = self.scaling_config._resources_per_worker_not_none
            rooms = _rooms(needs, self._own)
            if not self._own:
                least, most = self.scaling_config.min_workers, self.scaling_config.max_workers
                waited = time.monotonic() - (self._began or 0.0)
                if elastic.ranks_to_start(rooms, least, most, waited) is None:
                    return None
                self._nodes = [room.node for room in rooms if room.free]
            return {room.node: {name: room.free * amount for name, amount in needs.items()} for room in rooms}

    return Wishing(policy.scaling_config)


def _rooms(needs: Mapping[str, float], own: Mapping[str, int]) -> list[Room]:
    """Return for how many ranks that need so much each node has room; those of our own, by node, do not take any."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(16) as pool:
        answering = list(pool.map(_answers, nodes))

    def fit(resources: Mapping[str, float]) -> int:
        return int(min(resources.get(name, 0.0) // amount for name, amount in needs.items()))

    found = []
    for node in [node for node, answers in zip(nodes, answering, strict=True) if answers]:
        name, total = node["NodeID"], fit(node["Resources"])
        found.append(Room(name, min(fit(free.get(name, {})) + own.get(name, 0), total), total))
    return found


class Reach:
    """Asks the nodes that ranks are on whether they are there, beside Ray Train's controller."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="reach")
        self._asked: dict[str, Future[bool]] = {}
        self._misses: Counter[str] = Counter()  # in a row
        self._next = 0.0

    def lost(self, own: Collection[str]) -> str | None:
        """Ask again where it is time to; return a node that has missed too often, while another answers.

        Does not block. Where none answers it may be this machine that is cut off, and those train on: that is left to
        Ray Train, which waits longer.
        """
        for node in [node for node, asked in self._asked.items() if asked.done()]:
            self._misses[node] = 0 if self._asked.pop(node).result() else self._misses[node] + 1
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _ASK
            for node in ray.nodes():
                if (name := node["NodeID"]) in own and name not in self._asked:
                    self._asked[name] = self._pool.submit(_answers, node, _PATIENT_ANSWER)
        late = [node for node in own if self._misses[node] >= _MISSES]
        return late[0] if late and not all(self._misses[node] for node in own) else None


def _answers(node: Mapping[str, Any], timeout: float = _ANSWER) -> bool:
    """Whether a node is there, as far as its raylet takes a connection: Ray itself needs longer to notice.

    The system opens it, however little time the node has for its raylet.
    """
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=timeout).close()
    except OSError:
        return False
    return True


def _without_autoscaling(policy: Any) -> Any:
    """Return a scaling policy that asks no autoscaler: there is none."""

    class Fixed(type(policy)):  # type: ignore[misc]
        def after_controller_start(self, *_: Any, **__: Any) -> None: ...

        def _maybe_send_resource_request(self) -> None: ...

        def _send_resource_request(self) -> None: ...

        def _cancel_resource_request(self) -> None: ...

    return Fixed(policy.scaling_config)


@contextlib.contextmanager
def without_spared_processes() -> Iterator[None]:
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
