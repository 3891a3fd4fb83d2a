"""A rank that compiles says so: where a batch has a new shape, that takes far longer than any step before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._dynamo.callback import CallbackArgs

    from trainers.pulse import Pulse


@contextlib.contextmanager
def compilation_shown(pulse: Pulse) -> Iterator[None]:
    """Have `pulse` show when torch.compile, at a forward or a backward pass, compiles in this process."""
    from torch._dynamo.callback import callback_handler

    def begins(_: CallbackArgs) -> None:
        pulse.compiles()

    def ends(_: CallbackArgs) -> None:
        pulse.has_compiled()

    callback_handler.register_start_callback(begins)
    callback_handler.register_end_callback(ends)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # torch.compiler.reset() forgets all of them
            callback_handler.remove_start_callback(begins)
            callback_handler.remove_end_callback(ends)
