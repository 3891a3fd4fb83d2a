"""Storages on which something happens just before or just after a call: a crash, an outage, another writer."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any, cast

from cluster.storage.base import Storage

Hook = Callable[..., None]  # takes the call's name and its positional arguments


class KilledError(Exception):
    """The process is dead: nothing that it does after this counts."""


def hooked(storage: Storage, *, before: Hook | None = None, after: Hook | None = None) -> Storage:
    """Return a storage that tells of its calls."""

    class Hooked:
        uri = storage.uri

        def __getattr__(self, name: str) -> Any:
            method = getattr(storage, name)

            def call(*arguments: Any, **options: Any) -> Any:
                if before is not None:
                    before(name, *arguments)
                answer = method(*arguments, **options)
                if after is not None:
                    after(name, *arguments)
                return answer

            return call

    return cast(Storage, Hooked())


def dying(storage: Storage, calls: int) -> Storage:
    """Return a storage that does so many calls and then no more, as if its process had been killed."""
    counter, lock = itertools.count(), threading.Lock()

    def die(*_: Any) -> None:
        with lock:
            if next(counter) >= calls:
                raise KilledError

    return hooked(storage, before=die)


def once(matches: Callable[..., bool], act: Callable[[], object]) -> Hook:
    """Return a hook that acts at the first call that matches."""
    lock, done = threading.Lock(), threading.Event()

    def hook(name: str, *arguments: Any) -> None:
        with lock:
            if done.is_set() or not matches(name, *arguments):
                return
            done.set()
        act()

    return hook
