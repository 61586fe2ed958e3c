"""Clients that drop out, send NaN, or send a hundredfold: what that does to FedNAR, and what the defences save."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from runs import Outcomes, Overrides
from tables import mean_and_deviation, table

from fednar_ray.experiments.comparison.table import paired

PROMISE = 0.02  # of accuracy: no defence ends further below the clean run, on federations that promise it
COMMON = ("regularizer.weight_decay=0.001", "regularizer.clip_bound=1", "federation.clients_per_round=20")
MISBEHAVIOUR = ("availability.dropout=0.3", "corruption.nan=0.1", "corruption.scaled=0.1", "corruption.factor=100")
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

    def of(self, defence: Overrides, *, misbehave: bool) -> Overrides:
        """All that differs from the file."""
        return (f"data.partition.alpha={self.alpha}", *COMMON, *defence, *(MISBEHAVIOUR if misbehave else ()))


FEDERATIONS = (Federation(alpha=1, promises=True), Federation(alpha=0.3, promises=False))


def configurations() -> Iterator[Overrides]:
    """All that the table needs."""
    for federation in FEDERATIONS:
        for defence in DEFENCES.values():
            yield from (federation.of(defence, misbehave=misbehave) for misbehave in (False, True))


def the_table(outcomes: Outcomes) -> str:
    """A row a defence, under the table's title."""
    title = "Misbehaviour: 20 clients, all sampled; 30 % drop out of each round, 2 send NaN, 2 send a hundredfold"
    columns = ("all behave", "misbehaviour", "against the clean run")
    head = ("defence", *(f"α = {federation.alpha:g}: {column}" for federation in FEDERATIONS for column in columns))
    rows = []
    for label, defence in DEFENCES.items():
        cells = [cell for federation in FEDERATIONS for cell in _cells(federation, defence, outcomes)]
        rows.append((label, *cells))
    return f"**{title}**\n\n{table(head, rows)}"


def _cells(federation: Federation, defence: Overrides, outcomes: Outcomes) -> tuple[str, str, str]:
    behaved, misbehaved = (_finals(federation.of(defence, misbehave=each), outcomes) for each in (False, True))
    difference, interval = paired(misbehaved, _clean(federation, outcomes))
    return mean_and_deviation(behaved), mean_and_deviation(misbehaved), f"{difference:+.3f} ± {interval:.3f}"


def missed(outcomes: Outcomes) -> list[str]:
    """The defences that fell short of the promise."""
    short = []
    for federation in (each for each in FEDERATIONS if each.promises):
        for label, defence in DEFENCES.items():
            difference, _ = paired(
                _finals(federation.of(defence, misbehave=True), outcomes), _clean(federation, outcomes)
            )
            if defence != UNDEFENDED and difference < -PROMISE:
                short.append(f"{label}, α = {federation.alpha:g}: {difference:+.3f} against the clean run")
    return short


def _clean(federation: Federation, outcomes: Outcomes) -> npt.NDArray[np.float64]:
    """The mean of updates, where all behave and are there: [seeds]."""
    return _finals(federation.of(UNDEFENDED, misbehave=False), outcomes)


def _finals(configuration: Overrides, outcomes: Outcomes) -> npt.NDArray[np.float64]:
    return np.array([outcome.final for outcome in outcomes[configuration]])
