"""Runs the checks after each round, and keeps the alerts they give."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fednar_ray.config import Experiment
from fednar_ray.core.client_names import ClientNames
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.alerts.checks import CHECKS, explain_abort
from fednar_ray.experiments.alerts.finding import Finding
from fednar_ray.experiments.alerts.history import ChanceLevel, RunHistory

CAUSES: Mapping[str, set[str]] = {
    "stalls": {"diverges", "clips_everything", "decay_dominates"},
    "predicts_one_class": {"diverges", "clips_everything", "decay_dominates", "stalls"},
}
"""The name of an alert → those from which it follows. It is not raised with or after one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that a person should look at."""

    name: str  # the name of a check
    round_index: int
    message: str  # what is wrong, the likely cause, and what to change


class AlertMonitor:
    """Checks a run after each of its rounds, from round 0 on. Each check gives at most one alert per run.

    Args:
        experiment: What is run.
        chance: What its model reaches without learning; None if unknown.
        client_names: How messages call its clients.
        is_compared: Whether the run is part of a comparison, which messages then do not advise to start.
    """

    def __init__(
        self,
        experiment: Experiment,
        chance: ChanceLevel | None = None,
        client_names: ClientNames = (),
        *,
        is_compared: bool = False,
    ) -> None:
        self._history = RunHistory(experiment, chance, client_names, is_compared)
        self.alerts: tuple[Alert, ...] = ()

    def check_round(self, record: RoundRecord) -> tuple[Alert, ...]:
        """Returns the new alerts after the next round."""
        self._history.add(record)
        findings = {name: check(self._history) for name, check in CHECKS.items() if not self._is_known(name)}
        found = {name for name, finding in findings.items() if finding is not None}
        return self._add(record.round_index, {n: f for n, f in findings.items() if not found & CAUSES.get(n, set())})

    def check_abort(self, error: RoundAborted) -> tuple[Alert, ...]:
        """Returns the new alert of an aborted round, if any."""
        name, finding = explain_abort(self._history, error)
        return () if self._is_known(name) else self._add(error.round_index, {name: finding})

    def _is_known(self, name: str) -> bool:
        """Returns whether the alert was given before, or follows from one that was."""
        known = {alert.name for alert in self.alerts}
        return name in known or bool(known & CAUSES.get(name, set()))

    def _add(self, round_index: int, findings: Mapping[str, Finding | None]) -> tuple[Alert, ...]:
        new = tuple(
            Alert(
                name=name,
                round_index=round_index,
                message=f"{found.what}. Likely cause: {found.cause}. What to change: {found.change}.",
            )
            for name, found in findings.items()
            if found is not None
        )
        self.alerts += new
        return new


def find_alerts(
    experiment: Experiment,
    records: Iterable[RoundRecord],
    chance: ChanceLevel | None = None,
    client_names: ClientNames = (),
    *,
    is_compared: bool = False,
) -> tuple[Alert, ...]:
    """Finds the alerts of a run.

    Args:
        experiment: What was run.
        records: All its rounds, round 0 first.
        chance: What its model reaches without learning; None if unknown.
        client_names: How messages call its clients.
        is_compared: Whether the run is part of a comparison.
    """
    monitor = AlertMonitor(experiment, chance, client_names, is_compared=is_compared)
    for record in records:
        monitor.check_round(record)
    return monitor.alerts
