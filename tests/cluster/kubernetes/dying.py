"""A laptop that dies between two calls to the API server."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.kubernetes.api import Api


class Death(BaseException):
    """The process is gone: nothing of it is undone."""


def deaths(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> Iterator[int]:
    """Have a laptop die in what it does: at its first call, then after each that changes something, until it lives.

    What it only reads makes no difference to what it leaves. Yields the number of changes after each death, so that
    what is left can be looked at, and made ready for the next.
    """
    alive: Callable[..., Any] = Api._call
    for last in itertools.count():
        changes: list[str] = []

        def dying(
            self: Api, method: str, *arguments: Any, _last: int = last, _changes: list[str] = changes, **more: Any
        ) -> Any:
            if len(_changes) == _last:
                raise Death
            try:
                return alive(self, method, *arguments, **more)
            finally:
                if method in ("PATCH", "DELETE"):
                    _changes.append(method)

        with monkeypatch.context() as patch, contextlib.suppress(Death):
            patch.setattr(Api, "_call", dying)
            act()
            return
        yield last
