"""Sees rounds go by, and tells what is wrong."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fednar_ray.config import Experiment
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.alerts.checks import CHECKS, Finding, of_an_abort
from fednar_ray.experiments.alerts.history import ChanceLevel, RunHistory


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that a person should look at."""

    name: str  # a kind
    round_index: int
    message: str  # with the likely cause, and what to change


class AlertMonitor:
    """Sees a run's rounds one after the other, from round 0 on, and tells what is wrong with it as soon as it shows."""

    def __init__(self, experiment: Experiment, chance: ChanceLevel | None = None) -> None:
        self._past = RunHistory(experiment, chance)
        self.alerts: tuple[Alert, ...] = ()

    def see(self, record: RoundRecord) -> tuple[Alert, ...]:
        """The alerts that this round brings."""
        self._past.add(record)
        findings = {name: check(self._past) for name, check in CHECKS.items() if not self._told(name)}
        return self._add(record.round_index, findings)

    def see_abort(self, error: RoundAborted) -> tuple[Alert, ...]:
        """The alerts that an aborted round brings."""
        name, finding = of_an_abort(self._past, error)
        return () if self._told(name) else self._add(error.round_index, {name: finding})

    def _told(self, name: str) -> bool:
        """Whether it was told before, or follows from what was."""
        told = {alert.name for alert in self.alerts}
        return name in told or (name == "stalls" and "diverges" in told)

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
    experiment: Experiment, records: Iterable[RoundRecord], chance: ChanceLevel | None = None
) -> tuple[Alert, ...]:
    """The alerts of a run, from its records, round 0 first."""
    watch = AlertMonitor(experiment, chance)
    for record in records:
        watch.see(record)
    return watch.alerts
