"""What Ctrl-C and SIGTERM do to a command."""

import os
import signal
from collections.abc import Iterator
from types import FrameType

from fednar_ray.core.errors import Interrupted

INTERRUPTED = 130
TERMINATED = 143
DEFAULT_NEXT_STEP = "fednar runs shows what can be resumed"


class Terminated(KeyboardInterrupt):
    """SIGTERM: for instance, a cluster ends the job."""


def handle_signals() -> None:
    """Lets the first Ctrl-C or SIGTERM end the command cleanly, and the second one at once."""
    signal.signal(signal.SIGINT, _raise_interrupt)
    signal.signal(signal.SIGTERM, _raise_interrupt)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    code = INTERRUPTED if number == signal.SIGINT else TERMINATED
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: os._exit(code))
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def describe_interrupt(error: BaseException) -> tuple[str, int]:
    """Describes how a command was ended and what the user can do next, from the exception that ended it.

    Args:
        error: A KeyboardInterrupt, or an exception that one caused, such as Click's Abort.

    Returns:
        The message and the exit code.
    """
    causes = list(_chain(error))
    terminated = any(isinstance(each, Terminated) for each in causes)
    next_step = next((each.next_step for each in causes if isinstance(each, Interrupted)), DEFAULT_NEXT_STEP)
    message = f"{'terminated' if terminated else 'interrupted'}; {next_step}"
    return message, TERMINATED if terminated else INTERRUPTED


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception, then its cause, then the cause of that."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__
