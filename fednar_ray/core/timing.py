"""How long each phase of a round takes, by the driver's clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PHASES = ("broadcast", "train", "evaluate", "aggregate", "log")
"""Sending out; waiting for clients; evaluation; the rest, adding up and the server's step; recording the round before.

The first four add up to ``round_seconds``.
"""

DURATIONS = ("round_seconds", "client_seconds", *(f"seconds/{phase}" for phase in PHASES))
"""Of a round's metrics: all others are the same in every run of an experiment."""


class Phases:
    """A round's stopwatches, which start at once."""

    def __init__(self, log_seconds: float = 0.0) -> None:
        """``log_seconds``: what the round before took to be recorded."""
        self._start, self._log_seconds = time.perf_counter(), log_seconds
        self._seconds = dict.fromkeys(PHASES[:3], 0.0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """What happens within belongs to the phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def each(self, phase: str, items: Iterator[T]) -> Iterator[T]:
        """The items; the wait for each belongs to the phase, and what is made of it does not."""
        while True:
            with self.timed(phase):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def metrics(self) -> dict[str, float]:
        """The round's until now, for its report."""
        whole = time.perf_counter() - self._start
        seconds = {**self._seconds, "aggregate": whole - sum(self._seconds.values()), "log": self._log_seconds}
        return {"round_seconds": whole, **{f"seconds/{phase}": seconds[phase] for phase in PHASES}}
