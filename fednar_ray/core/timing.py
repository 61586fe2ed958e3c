"""Measures how long each phase of a round takes, by the driver's clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PHASES = ("broadcast", "train", "evaluate", "aggregate", "log")
"""The phases of a round.

``broadcast`` sends the round's parameters, ``train`` waits for clients, ``evaluate`` computes metrics, and
``aggregate`` is all the rest, such as sums and the server's step. They add up to ``round_seconds``. ``log`` is the
time that recording the previous round took.
"""

DURATIONS = ("round_seconds", "client_seconds", *(f"seconds/{phase}" for phase in PHASES))
"""The metrics that are durations. All other metrics are the same in every run of an experiment."""


class Phases:
    """The stopwatches of one round, which start when it is created.

    Args:
        log_seconds: How long recording the previous round took.
    """

    def __init__(self, log_seconds: float = 0.0) -> None:
        self._start, self._log_seconds = time.perf_counter(), log_seconds
        self._seconds = dict.fromkeys(PHASES[:3], 0.0)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Counts the time spent inside as part of a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def measure_items(self, phase: str, items: Iterator[T]) -> Iterator[T]:
        """Yields the items. Waiting for an item is part of the phase; what the caller does with it is not."""
        while True:
            with self.measure(phase):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def add_ahead(self, seconds: float) -> None:
        """Counts time that training took before the round began."""
        self._seconds["train"] += seconds
        self._start -= seconds

    def compute_metrics(self) -> dict[str, float]:
        """Returns the durations up to now, as metrics of the round."""
        whole = time.perf_counter() - self._start
        seconds = {**self._seconds, "aggregate": whole - sum(self._seconds.values()), "log": self._log_seconds}
        return {"round_seconds": whole, **{f"seconds/{phase}": seconds[phase] for phase in PHASES}}
