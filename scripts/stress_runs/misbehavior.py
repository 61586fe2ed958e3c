"""Clients drop out, send NaN, or send updates times 100: how much accuracy FedNAR loses, and what the defenses save."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pages import build_table
from runs import Outcomes, Overrides, format_mean

from fednar_ray.report.comparison_table import compute_paired_difference

PROMISE = 0.02  # in accuracy: the most that a defense may lose against the clean run, where this is promised
COMMON = ("regularizer.weight_decay=0.001", "regularizer.clip_bound=1", "federation.clients_per_round=20")
MISBEHAVIOR = ("availability.dropout=0.3", "attacks.nan=0.1", "attacks.scaled=0.1", "attacks.factor=100")
UNDEFENDED: Overrides = ()
DEFENSES = {
    "none (`mean`)": UNDEFENDED,
    "`screening.max_deviation=5`": ("screening.max_deviation=5",),
    "`norm_bound`": ("aggregation.name=norm_bound",),
    "`krum`, `byzantine=0.25`": ("aggregation.name=krum", "aggregation.byzantine=0.25"),
    "`trimmed_mean`, `trim=0.2`": ("aggregation.name=trimmed_mean", "aggregation.trim=0.2"),
    "`median`": ("aggregation.name=median",),
}


@dataclass(frozen=True)
class Federation:
    """A federation, and whether defenses promise something on it."""

    alpha: float  # skew of the labels
    promises: bool

    def of(self, defense: Overrides, *, misbehave: bool) -> Overrides:
        """Returns the overrides for a defense."""
        return (f"data.partition.alpha={self.alpha}", *COMMON, *defense, *(MISBEHAVIOR if misbehave else ()))


FEDERATIONS = (Federation(alpha=1, promises=True), Federation(alpha=0.3, promises=False))


def iter_configurations() -> Iterator[Overrides]:
    """Yields every configuration that the table needs."""
    for federation in FEDERATIONS:
        for defense in DEFENSES.values():
            yield from (federation.of(defense, misbehave=misbehave) for misbehave in (False, True))


def build_the_table(outcomes: Outcomes) -> str:
    """Returns the table with one row per defense, under its title."""
    title = "Misbehavior: 20 clients, all sampled; 30 % drop out of each round, 2 send NaN, 2 send a hundredfold"
    columns = ("all behave", "misbehavior", "against the clean run")
    head = ("defense", *(f"α = {federation.alpha:g}: {column}" for federation in FEDERATIONS for column in columns))
    rows = []
    for label, defense in DEFENSES.items():
        cells = [cell for federation in FEDERATIONS for cell in _build_cells(federation, defense, outcomes)]
        rows.append((label, *cells))
    return f"**{title}**\n\n{build_table(head, rows)}"


def _build_cells(federation: Federation, defense: Overrides, outcomes: Outcomes) -> tuple[str, str, str]:
    behaved, misbehaved = (_load_finals(federation.of(defense, misbehave=each), outcomes) for each in (False, True))
    difference, interval = compute_paired_difference(misbehaved, _load_clean(federation, outcomes))
    return format_mean(behaved), format_mean(misbehaved), f"{difference:+.3f} ± {interval:.3f}"


def find_missed(outcomes: Outcomes) -> list[str]:
    """Returns the defenses that missed the promise."""
    short = []
    for federation in (each for each in FEDERATIONS if each.promises):
        for label, defense in DEFENSES.items():
            difference, _ = compute_paired_difference(
                _load_finals(federation.of(defense, misbehave=True), outcomes), _load_clean(federation, outcomes)
            )
            if defense != UNDEFENDED and difference < -PROMISE:
                short.append(f"{label}, α = {federation.alpha:g}: {difference:+.3f} against the clean run")
    return short


def _load_clean(federation: Federation, outcomes: Outcomes) -> npt.NDArray[np.float64]:
    """Returns the accuracies of the plain mean with all clients present and honest, [seeds]."""
    return _load_finals(federation.of(UNDEFENDED, misbehave=False), outcomes)


def _load_finals(configuration: Overrides, outcomes: Outcomes) -> npt.NDArray[np.float64]:
    return np.array([outcome.final for outcome in outcomes[configuration]])
