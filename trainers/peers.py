"""What the ranks tell each other of a save that all of them have a part in.

They do so behind the loop, where a collective could get in between the loop's own: through the key-value store that
they met in, in JSON. A rank tells how its part stands; rank 0 rules what becomes of the save, once and for all of them.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from cluster import errors
from cluster.errors import InfrastructureError, SupersededError
from cluster.shards import Layout, layout_from
from cluster.storage.base import Digest

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from trainers.context import WorkerContext

_FIRST_LOOK = 0.005  # seconds; each later one comes twice as late, up to
_LAST_LOOK = 0.2


class Stand(StrEnum):
    """How a save stands, on one rank or on all."""

    AWAY = "away"  # storage does not answer; it may yet
    STORED = "stored"  # this rank's part of it
    COMMITTED = "committed"
    SKIPPED = "skipped"  # given up for a newer one
    FAILED = "failed"


@dataclass(frozen=True)
class Told:
    """What a rank tells of its part."""

    stand: Stand
    files: Mapping[str, Digest] = field(default_factory=dict)
    layout: Layout = field(default_factory=dict)
    blocked: float = 0.0  # seconds that its loop stood still for the copy
    error: tuple[str, str] = ("", "")  # its class and its message

    @classmethod
    def unpacked(cls, data: bytes) -> Told:
        value = json.loads(zlib.decompress(data))
        return cls(
            stand=Stand(value["stand"]),
            files={name: Digest(**digest) for name, digest in value["files"].items()},
            layout={
                file: {name: layout_from(described) for name, described in named.items()}
                for file, named in value["layout"].items()
            },
            blocked=value["blocked"],
            error=tuple(value["error"]),
        )

    def failure(self, rank: int) -> RankFailedError:
        """Return what that rank met, as the same kind of error, so that every rank ends for the same reason."""
        kind, message = self.error
        known = SupersededError if kind == SupersededError.__name__ else getattr(errors, kind, None)
        if isinstance(known, type) and issubclass(known, InfrastructureError):
            return RankFailedError(known(message))
        return RankFailedError(InfrastructureError(f"another rank is gone: rank {rank} could not save: {message}"))


class RankFailedError(Exception):
    """A rank failed at its part of a save; `cause` is what every rank is to raise for it."""

    def __init__(self, cause: InfrastructureError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Peers:
    """The ranks of this run, as one of them sees them. No call waits for another rank."""

    def __init__(self, rank: int, world_size: int, store: Store) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = store

    @classmethod
    def of(cls, context: WorkerContext) -> Peers:
        """Return the ranks of a process group, which must exist."""
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

        return cls(context.rank, context.world_size, PrefixStore("raylift-saves", _get_default_store()))

    def tell(self, step: int, told: Told) -> None:
        """Tell how a save stands here; as rank 0 with anything but STORED, how it stands at all."""
        who = "all" if self.rank == 0 and told.stand is not Stand.STORED else str(self.rank)
        data = zlib.compress(json.dumps(asdict(told)).encode())  # the store takes 8 MiB a value
        self._store.set(f"{step}/{who}", cast(str, data))  # bytes do as well, which its types do not say

    def fail(self, step: int, error: BaseException) -> None:
        self.tell(step, Told(Stand.FAILED, error=(type(error).__name__, str(error))))

    def ruling(self, step: int) -> Told | None:
        """Return how a save stands at all, if rank 0 has said so. Raises RankFailedError."""
        told = self._read(step, "all")
        if told is not None and told.stand is Stand.FAILED:
            raise told.failure(0)
        return told

    def part(self, step: int, rank: int) -> Told | None:
        """Return how a save stands on a rank, if that has told. Raises RankFailedError."""
        told = self._read(step, str(rank))
        if told is not None and told.stand is Stand.FAILED:
            raise told.failure(rank)
        return told

    def forget(self, step: int) -> None:
        """Let go of what the ranks told of a save."""
        for rank in range(self.world_size):
            self._store.delete_key(f"{step}/{rank}")

    def _read(self, step: int, who: str) -> Told | None:
        key = f"{step}/{who}"
        return Told.unpacked(self._store.get(key)) if self._store.check([key]) else None


class Looks:
    """The pauses between looks at what others tell: short at first."""

    def __init__(self) -> None:
        self._pause = _FIRST_LOOK

    def pause(self) -> None:
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LAST_LOOK)
