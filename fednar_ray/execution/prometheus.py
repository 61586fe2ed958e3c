"""Rounds, clients and failures among Ray's own metrics, which each node offers to Prometheus."""

import ray
from ray.util.metrics import Counter, Gauge

from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.reports import RoundReport

RUN = "run"  # the label: the name of the run directory


class RoundMetrics(RoundCallback):
    """Counts one run's rounds, where this process is connected to Ray; elsewhere does nothing.

    In Prometheus, Ray puts ``ray_`` before the names.
    """

    def __init__(self, run: str) -> None:
        self._labels = {RUN: run}
        self._connected = ray.is_initialized()
        if not self._connected:
            return
        self._rounds = Counter("fednar_rounds", "Rounds that ended.", (RUN,))
        self._clients = Counter("fednar_clients", "Clients whose update counted.", (RUN,))
        self._failures = Counter("fednar_client_failures", "Clients whose update did not count.", (RUN,))
        self._seconds = Gauge("fednar_round_seconds", "How long the last round took.", (RUN,))

    def on_round_end(self, report: RoundReport) -> None:
        """Counts the round."""
        if not self._connected:
            return
        self._rounds.inc(1, self._labels)
        for counter, name in ((self._clients, "clients_trained"), (self._failures, "clients_failed")):
            if report.metrics[name] > 0:  # Ray refuses to add nothing
                counter.inc(report.metrics[name], self._labels)
        self._seconds.set(report.metrics["round_seconds"], self._labels)
