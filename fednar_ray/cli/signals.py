"""What Ctrl-C and SIGTERM do to a command."""

import os
import signal
from collections.abc import Iterator
from types import FrameType

from fednar_ray.core.errors import Interrupted

INTERRUPTED = 130
TERMINATED = 143
DEFAULT_NEXT_STEP = "fednar runs shows what can be resumed"


_received: int | None = None  # the signal that ends this process


def handle_signals() -> None:
    """Lets the first Ctrl-C or SIGTERM end the command cleanly, and the second one at once."""
    signal.signal(signal.SIGINT, _raise_interrupt)
    signal.signal(signal.SIGTERM, _raise_interrupt)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    _received, code = number, _get_exit_code(number)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: os._exit(code))
    raise KeyboardInterrupt


def _get_exit_code(number: int | None) -> int:
    return TERMINATED if number == signal.SIGTERM else INTERRUPTED


def describe_interrupt(error: BaseException) -> tuple[str, int]:
    """Describes how a command was ended and what the user can do next.

    Which signal it was is not taken from the exception, because Ray raises a KeyboardInterrupt of its own instead.

    Args:
        error: A KeyboardInterrupt, or an exception that one caused, such as Click's Abort.

    Returns:
        The message and the exit code.
    """
    next_step = next((each.next_step for each in _chain(error) if isinstance(each, Interrupted)), DEFAULT_NEXT_STEP)
    code = _get_exit_code(_received)
    return f"{'terminated' if code == TERMINATED else 'interrupted'}; {next_step}", code


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception, then its cause, then the cause of that."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__
