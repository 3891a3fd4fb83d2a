"""One node of a real Ray, and the process that started it; it ends with its standard input.

    python -P -m tests.real.ray_node FOLDER [ADDRESS IP GPUS]

Without an address it is a head. It prints the address of the GCS, and the node's id, once it runs. Ray takes its word
for the GPUs: ranks that are given one find none, and train on the processor.
"""

from __future__ import annotations

import os
import select
import sys

import ray
from ray._private.node import Node
from ray._private.parameter import RayParams

from trainers.backend import start_ray, without_spared_processes


def start_head(folder: str) -> str:
    start_ray(cpus=1, temp_folder=folder)
    context = ray.get_runtime_context()
    return f"{context.gcs_address} {context.get_node_id()}"


def join(folder: str, address: str, ip: str, gpus: str) -> str:
    parameters = RayParams(
        gcs_address=address,
        node_ip_address=ip,
        num_cpus=1,
        num_gpus=int(gpus),
        object_store_memory=80_000_000,
        temp_dir=folder,
        min_worker_port=0,
        max_worker_port=0,
    )
    with without_spared_processes():
        node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)
    return f"{address} {node.node_id}"


def reap() -> None:
    """Let what has died be gone: its workers end only then."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                return
        except ChildProcessError:
            return


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    print(f"running {join(folder, *rest) if rest else start_head(folder)}", flush=True)
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        reap()
    os._exit(0)
