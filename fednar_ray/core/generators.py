"""Runs a generator to its end."""

from collections.abc import Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Value = TypeVar("Value")


def drain(steps: Generator[Step, None, Value], on_step: Callable[[Step], object] | None = None) -> Value:
    """Runs a generator to its end and returns its result.

    Args:
        steps: The generator.
        on_step: Called with each value that it yields.
    """
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: Value = end.value
            return result
        if on_step is not None:
            on_step(step)
