"""Clients that drop out, send NaN, or send a hundredfold: what that does to FedNAR, and what the defenses save."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pages import build_table
from runs import Outcomes, Overrides, format_mean

from fednar_ray.experiments.comparison.table import paired

PROMISE = 0.02  # of accuracy: no defense ends further below the clean run, on federations that promise it
COMMON = ("regularizer.weight_decay=0.001", "regularizer.clip_bound=1", "federation.clients_per_round=20")
MISBEHAVIOUR = ("availability.dropout=0.3", "attacks.nan=0.1", "attacks.scaled=0.1", "attacks.factor=100")
UNDEFENDED: Overrides = ()
DEFENCES = {
    "none (`mean`)": UNDEFENDED,
    "`screening.max_deviation=5`": ("screening.max_deviation=5",),
    "`norm_bound`": ("aggregation.name=norm_bound",),
    "`krum`, `byzantine=0.25`": ("aggregation.name=krum", "aggregation.byzantine=0.25"),
    "`trimmed_mean`, `trim=0.2`": ("aggregation.name=trimmed_mean", "aggregation.trim=0.2"),
    "`median`": ("aggregation.name=median",),
}


@dataclass(frozen=True)
class Federation:
    """Where it happens."""

    alpha: float  # of the labels' skew
    promises: bool

    def of(self, defense: Overrides, *, misbehave: bool) -> Overrides:
        """All that differs from the file."""
        return (f"data.partition.alpha={self.alpha}", *COMMON, *defense, *(MISBEHAVIOUR if misbehave else ()))


FEDERATIONS = (Federation(alpha=1, promises=True), Federation(alpha=0.3, promises=False))


def configurations() -> Iterator[Overrides]:
    """All that the table needs."""
    for federation in FEDERATIONS:
        for defense in DEFENCES.values():
            yield from (federation.of(defense, misbehave=misbehave) for misbehave in (False, True))


def the_table(outcomes: Outcomes) -> str:
    """A row a defense, under the table's title."""
    title = "Misbehavior: 20 clients, all sampled; 30 % drop out of each round, 2 send NaN, 2 send a hundredfold"
    columns = ("all behave", "misbehavior", "against the clean run")
    head = ("defense", *(f"α = {federation.alpha:g}: {column}" for federation in FEDERATIONS for column in columns))
    rows = []
    for label, defense in DEFENCES.items():
        cells = [cell for federation in FEDERATIONS for cell in _cells(federation, defense, outcomes)]
        rows.append((label, *cells))
    return f"**{title}**\n\n{build_table(head, rows)}"


def _cells(federation: Federation, defense: Overrides, outcomes: Outcomes) -> tuple[str, str, str]:
    behaved, misbehaved = (_finals(federation.of(defense, misbehave=each), outcomes) for each in (False, True))
    difference, interval = paired(misbehaved, _clean(federation, outcomes))
    return format_mean(behaved), format_mean(misbehaved), f"{difference:+.3f} ± {interval:.3f}"


def missed(outcomes: Outcomes) -> list[str]:
    """The defenses that fell short of the promise."""
    short = []
    for federation in (each for each in FEDERATIONS if each.promises):
        for label, defense in DEFENCES.items():
            difference, _ = paired(
                _finals(federation.of(defense, misbehave=True), outcomes), _clean(federation, outcomes)
            )
            if defense != UNDEFENDED and difference < -PROMISE:
                short.append(f"{label}, α = {federation.alpha:g}: {difference:+.3f} against the clean run")
    return short


def _clean(federation: Federation, outcomes: Outcomes) -> npt.NDArray[np.float64]:
    """The mean of updates, where all behave and are there: [seeds]."""
    return _finals(federation.of(UNDEFENDED, misbehave=False), outcomes)


def _finals(configuration: Overrides, outcomes: Outcomes) -> npt.NDArray[np.float64]:
    return np.array([outcome.final for outcome in outcomes[configuration]])
