"""Adds rounds, clients and failures to Ray's metrics, which each node exports to Prometheus."""

import ray
from ray.util.metrics import Counter, Gauge

from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.reports import RoundReport

RUN_LABEL = "run"  # its value is the name of the run directory


class RoundMetrics(RoundCallback):
    """Counts the rounds of one run if this process is connected to Ray, and does nothing otherwise.

    In Prometheus the metrics are called ``ray_fednar_rounds`` and so on, because Ray adds the prefix ``ray_``.
    """

    def __init__(self, run: str) -> None:
        self._labels = {RUN_LABEL: run}
        self._connected = ray.is_initialized()
        if not self._connected:
            return
        labels = (RUN_LABEL,)
        self._rounds = Counter("fednar_rounds", "Rounds that have ended.", labels)
        self._clients = Counter("fednar_clients", "Clients whose update was included.", labels)
        self._failures = Counter("fednar_client_failures", "Clients whose update was excluded.", labels)
        self._seconds = Gauge("fednar_round_seconds", "Duration of the last round in seconds.", labels)

    def on_round_end(self, report: RoundReport) -> None:
        """Adds the round, its clients and its failures to the counters."""
        if not self._connected:
            return
        self._rounds.inc(1, self._labels)
        for counter, name in ((self._clients, "clients_trained"), (self._failures, "clients_failed")):
            if (count := report.metrics.get(name, 0.0)) > 0:  # Ray refuses to add zero; private runs count nobody
                counter.inc(count, self._labels)
        self._seconds.set(report.metrics["round_seconds"], self._labels)
