"""What a rank knows of the others. Ray stands behind RayContext alone; LocalContext needs no Ray at all."""

from __future__ import annotations

import os
import socket
import tempfile
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cluster.errors import DeviceError
from trainers import processors

if TYPE_CHECKING:
    import torch

# A net: watchdogs end what hangs. At the first step all wait for the last one that restores.
COLLECTIVE_TIMEOUT = timedelta(minutes=45)


class StopReason(Enum):
    """Why training ends before its last step; of several wishes the first counts."""

    PERSON = "a person, or the budget, asked for it"
    PREEMPTED = "the machine will be taken away"
    RESIZE = "there is room for more ranks"
    PAUSED = "the sweep's scheduler lets it wait"  # of a trial
    PRUNED = "the sweep's scheduler ended it"  # of a trial
    LET_GO = "its sweep let go of it"  # of a trial: the sweep's own events tell whether it goes on


class WorkerContext(Protocol):
    """One rank among the ranks of a run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int  # ranks on this machine
    temporary: Path  # the folder in which the ranks of a machine meet
    compared_by: str | None  # a metric that whoever started a trial looks for, and misses by himself

    def device(self) -> torch.device:
        """Return the accelerator that is this rank's own, or the CPU."""
        ...

    def join(self) -> None:
        """Join the process group; with one rank there is none. Blocks until all have come; idempotent."""
        ...

    def leave(self) -> None:
        """Leave the process group. Idempotent."""
        ...

    def gather(self, value: int) -> list[int]:
        """Return every rank's number, by rank. Collective."""
        ...


class LocalContext:
    """Ranks started by torchrun, or a single process."""

    temporary = Path(tempfile.gettempdir())
    compared_by: str | None = None

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def device(self) -> torch.device:
        import torch

        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    def join(self) -> None:
        import torch

        device = self.device()
        if device.type == "cuda":
            compute_alike(device)
        elif self.local_world_size > 1 or processors.is_shared():
            # ranks that share a machine's cores: more threads than cores slow each other down
            torch.set_num_threads(max(1, processors.cpu_count() // self.local_world_size))
        if self.world_size > 1 and not torch.distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            torch.distributed.init_process_group(
                backend, timeout=COLLECTIVE_TIMEOUT, device_id=device if device.type == "cuda" else None
            )

    def leave(self) -> None:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def gather(self, value: int) -> list[int]:
        import torch

        if self.world_size == 1:
            return [value]
        values = torch.zeros(self.world_size, dtype=torch.int64, device=self.device())
        values[self.rank] = value
        torch.distributed.all_reduce(values)
        return [int(one) for one in values.tolist()]


class RayContext(LocalContext):
    """A worker of Ray Train; the environment is torchrun's, set by trainers.backend."""

    def __init__(self, temporary: Path) -> None:
        super().__init__()
        self.temporary = temporary

    def device(self) -> torch.device:
        return device_from_ray()


def device_from_ray() -> torch.device:
    """Return the accelerator that Ray gave this process, all or a share of it; else the CPU, whatever it could see.

    Raises DeviceError where Ray gave one that cannot be used: the CPU would take its time, and its price.
    """
    import ray
    import torch

    accelerators: Any = ray.get_gpu_ids()
    if accelerators and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        own = str(accelerators[0])
        return torch.device("cuda", visible.index(own) if own in visible else 0)
    if accelerators and (torch.version.cuda or torch.version.hip):
        raise DeviceError(
            f"Ray gave a rank the GPU {accelerators[0]} of {socket.gethostname()}, and torch {torch.__version__} "
            "cannot use it: either the GPU is gone, or its driver is too old. Look there: nvidia-smi"
        )
    return torch.device("cpu")


def compute_alike(device: torch.device) -> None:
    """Make a GPU this thread's own, and have it compute the same bits in every run, with all those of fp32."""
    import torch

    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = False  # what is fastest this time need not be so after a resume
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # its own choice for convolutions, which keeps 10 bits of 23
