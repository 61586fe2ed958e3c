"""Checks whether too many clients of the last rounds were not included, and says why."""

from collections import Counter
from collections.abc import Sequence

from fednar_ray.core.client_names import are_named, list_clients
from fednar_ray.core.exclusion import ExclusionReason
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.alerts.finding import Finding
from fednar_ray.experiments.alerts.history import SOON, WINDOW, RunHistory

LOST, FAILED = 0.5, 0.2  # shares of the clients that a round should have
LOSSES = {
    "clients_dropped_out": (
        "they did not return",
        "federation.clients_per_round or availability.over_sampling: more; a round then costs more",
    ),
    "clients_late": (
        "they were late",
        "availability.deadline_seconds: more, or availability.over_sampling: above 1; a round then takes or costs more",
    ),
    "clients_failed": ("they failed", "see excluded_clients.json"),
    "": (
        "they were not available",
        "availability: which clients the trace or on_off makes available, or federation.clients_per_round",
    ),
}
FAILED_CLIENTS = (
    "they failed",
    "the reasons in the log; execution.retries and execution.client_timeout_seconds: more",
)
EXCLUSIONS = {
    ExclusionReason.NOT_FINITE: (
        "their updates are not finite",
        "look at the data of these clients; if it is in order, algorithm.local_lr: a tenth, which takes more rounds",
    ),
    ExclusionReason.NORM_TOO_LARGE: (
        "their updates are far longer than others'",
        "look at these clients; a larger screening.max_deviation includes them",
    ),
}
"""Cause and suggested change, if all excluded clients were excluded for the same reason."""


def check_lost_clients(history: RunHistory) -> Finding | None:
    """Finds rounds that many clients did not take part in, or in which many failed, and the most frequent cause."""
    rounds = list(history.recent)[-WINDOW:]
    wanted = sum(_count_wanted_clients(history, record) for record in rounds)
    if len(rounds) < SOON or not wanted or not any("clients_trained" in record.metrics for record in rounds):
        return None
    counted = {name: sum(record.metrics.get(name, 0.0) for record in rounds) for name in LOSSES}
    missing = wanted - sum(record.metrics.get("clients_trained", 0.0) for record in rounds)
    if missing < LOST * wanted and counted["clients_failed"] < FAILED * wanted:
        return None
    name = max(counted, key=lambda each: counted[each])
    failed, reasons = name == "clients_failed", {why.reason for r in rounds for why in r.exclusions.values()}
    cause, change = LOSSES[name]
    if failed:
        cause, change = EXCLUSIONS.get(reasons.pop(), FAILED_CLIENTS) if len(reasons) == 1 else FAILED_CLIENTS
    what = f"{100 * missing / wanted:.0f} % of the clients of the last {len(rounds)} rounds were not included"
    return Finding(what, f"{cause} ({counted[name]:.0f} of {wanted:.0f}){_name_excluded(history, rounds)}", change)


def _name_excluded(history: RunHistory, rounds: Sequence[RoundRecord]) -> str:
    """Returns the names of the clients that were excluded, most often excluded first; empty if they have no names."""
    often = Counter(client_id for record in rounds for client_id in record.exclusions)
    if not often or not are_named(history.client_names):
        return ""
    return f": {list_clients([client_id for client_id, _ in often.most_common()], history.client_names)}"


def _count_wanted_clients(history: RunHistory, record: RoundRecord) -> float:
    """Returns how many clients a round should have; clients sampled beyond that number are spare."""
    sampled, wanted = record.metrics.get("clients_sampled", 0.0), history.experiment.federation.clients_per_round
    return sampled if wanted is None else float(wanted)
