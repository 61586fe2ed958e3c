"""Compares FedNAR with the baseline under skew, on tiny clients, and through outages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pages import build_table
from runs import Outcome, Outcomes, Overrides, format_mean

from fednar_ray.report.comparison_table import compute_paired_difference

BASELINE, FEDNAR = "decoupled", "fednar"
DECAYS = (0.001, 0.03)  # mild, and badly chosen
CLIP_BOUND = 0.3
TARGET = 0.8  # accuracy
EXAMPLES = 1293  # for training: digits' fifth for testing and the file's tenth for validation are held out


@dataclass(frozen=True)
class Case:
    """One row's stress: its label and overrides."""

    label: str
    overrides: Overrides

    def of(self, regularizer: str, weight_decay: float) -> Overrides:
        """Returns the overrides for a regularizer and a weight decay."""
        settings = {"name": regularizer, "weight_decay": weight_decay, "clip_bound": CLIP_BOUND}
        return (*self.overrides, *(f"regularizer.{key}={value}" for key, value in settings.items()))


@dataclass(frozen=True)
class Study:
    """A table with one row per case and weight decay."""

    title: str
    head: str  # heading of the first column
    cases: tuple[Case, ...]


def _build_tiny(examples: int) -> Overrides:
    """Returns overrides for clients with ``examples`` or ``examples`` + 1 examples each."""
    clients = f"data.partition.clients={EXAMPLES // examples}"
    return ("data.partition.kind=iid", clients, "federation.clients_per_round=20")


STUDIES = (
    Study(
        "Skewed labels: 20 clients, 10 sampled, shares of each class drawn from Dir(α)",
        "α",
        tuple(Case(f"{alpha:g}", (f"data.partition.alpha={alpha}",)) for alpha in (1, 0.3, 0.1, 0.01)),
    ),
    Study(
        f"Tiny clients: as many as {EXAMPLES} examples make, drawn at random, 20 sampled",
        "examples per client",
        tuple(Case(str(count), _build_tiny(count)) for count in (5, 3, 1)),
    ),
    Study(
        "Outages: 20 clients, 10 sampled, α = 0.3; a sampled client does not return with this probability",
        "outage",
        tuple(Case(f"{100 * share:g} %", (f"availability.dropout={share}",)) for share in (0, 0.1, 0.3, 0.5, 0.7)),
    ),
)


def iter_configurations() -> Iterator[Overrides]:
    """Yields every configuration that the tables need."""
    for study in STUDIES:
        for case in study.cases:
            yield from (case.of(name, decay) for decay in DECAYS for name in (BASELINE, FEDNAR))


def iter_tables(outcomes: Outcomes) -> Iterator[str]:
    """Yields one table per study, under its title."""
    for study in STUDIES:
        head = (study.head, "λ", "baseline", "FedNAR", "difference", f"rounds to {TARGET:g}", "clients per round")
        rows = [_build_row(case, decay, outcomes) for case in study.cases for decay in DECAYS]
        yield f"**{study.title}**\n\n{build_table(head, rows)}"


def _build_row(case: Case, decay: float, outcomes: Outcomes) -> tuple[str, ...]:
    baseline, fednar = (outcomes[case.of(name, decay)] for name in (BASELINE, FEDNAR))
    finals = [np.array([outcome.final for outcome in runs]) for runs in (baseline, fednar)]
    difference, interval = compute_paired_difference(finals[1], finals[0])
    assert interval is not None
    text = f"{difference:+.3f} ± {interval:.3f}"
    return (
        case.label,
        f"{decay:g}",
        *map(format_mean, finals),
        f"**{text}**" if abs(difference) > interval else text,
        f"{_format_rounds(baseline)}; {_format_rounds(fednar)}",
        f"{np.mean([outcome.clients for outcome in (*baseline, *fednar)]):.1f}",
    )


def _format_rounds(runs: Sequence[Outcome]) -> str:
    """Formats the median of the seeds that reached the target, and how many did if not all."""
    reached = [rounds for outcome in runs if (rounds := outcome.rounds_to(TARGET)) is not None]
    few = "" if len(reached) == len(runs) else f" ({len(reached)}/{len(runs)})"
    return f"{np.median(reached):g}{few}" if reached else "–"
