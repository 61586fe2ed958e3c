"""Audits the differential privacy of real runs by planted clients. ``scripts/privacy_audit --help`` says how to use it.

Every planted client (canary) has a coordinate of the model for itself, which it moves as far as the bound allows. For
half of them, drawn by coin, the example is all zeros instead, so that their update is zero: they are absent. An
attacker who knows everything else guesses who is present by the likelihood ratio of the released parameters. A
mechanism that is (ε, δ)-private gives every guess TPR ≤ e^ε·FPR + δ. One canary is one trial, and all are independent:
the noise and the samples of different coordinates are.

The threshold of a guess is chosen on half of the trials, and its rates are bounded on the other half by Clopper and
Pearson's intervals, with 5 % of error for all rows together.

Sources: Jagielski, Ullman and Oprea, NeurIPS 2020 (lower bounds); Steinke, Nasr and Jagielski, NeurIPS 2023 (many
canaries in one run).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

import fednar_ray as fr
from fednar_ray.core.private_metrics import EPSILON, NORM_BOUND

DELTA, ERROR = 5e-4, 0.05
CLAIMED = 2.0
NONE = 1e-9  # a noise multiplier that is none
OTHERS = 4  # ordinary clients

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration whose ε is bounded from below.

    Attributes:
        name: What it is.
        sections: Its settings.
        share: How much noise it gets of what the claim needs.
    """

    name: str
    sections: dict[str, Any]
    share: float

    @property
    def label(self) -> str:
        """The row's first columns."""
        return f"{self.name}, {'noise off' if not self.share else f'{self.share:g} of the noise'}"


MECHANISMS: dict[str, dict[str, Any]] = {
    "fixed bound, everyone, 1 round": {"rounds": 1, "sampled": 1.0, "bound": {"name": "fixed", "norm": 0.5}},
    "fixed bound, half, 4 rounds": {"rounds": 4, "sampled": 0.5, "bound": {"name": "fixed", "norm": 0.5}},
    "adaptive bound, half, 4 rounds": {"rounds": 4, "sampled": 0.5, "bound": {"name": "adaptive", "norm": 0.5}},
    "fednar bound annealed, half, 4 rounds": {"rounds": 4, "sampled": 0.5, "bound": {"name": "fednar"}},
}
ROWS = [Row(name, sections, share) for name, sections in MECHANISMS.items() for share in (1.0, 0.5, 0.0)]


def build_experiment(row: Row, canaries: int, seed: int, noise: float | None) -> fr.Experiment:
    """Builds a run of a row; ``noise`` is its noise multiplier, None: the one that the claim needs."""
    clients = canaries + OTHERS
    spent = {"epsilon": CLAIMED} if noise is None else {"noise_multiplier": noise}
    return fr.Experiment.model_validate(
        {
            "name": "audit",
            "seed": seed,
            "federation": {
                "rounds": row.sections["rounds"],
                "clients_per_round": round(clients * row.sections["sampled"]),
                "sampling": "poisson",
                "local_steps": 3,
                "batch_size": 8,
            },
            "algorithm": {"name": "fedavg", "local_lr": 0.05, "local_lr_anneal": 0.9},
            "regularizer": {"name": "fednar", "weight_decay": 0.0, "clip_bound": 4.0, "clip_bound_anneal": 0.9},
            "privacy": {"bound": row.sections["bound"], "delta": DELTA, **spent},
            "execution": {"placement": "serial"},
        }
    )


def build_federation(present: NDArray[np.bool_], seed: int) -> fr.Federation:
    """Builds clients of a linear regression: canaries with a coordinate each, and others that share two coordinates."""
    dimension = len(present) + 2
    clients = []
    for index, is_present in enumerate(present):
        x = np.zeros((1, dimension), dtype=np.float32)
        x[0, index] = is_present
        clients.append((x, np.full(1, 1e3 * is_present, dtype=np.float32)))
    rng = np.random.default_rng(seed)
    for _ in range(OTHERS):
        x = np.zeros((6, dimension), dtype=np.float32)
        x[:, -2:] = rng.standard_normal((6, 2))
        clients.append((x, rng.standard_normal(6).astype(np.float32)))
    return fr.Federation(clients=clients, test=clients[-1], task="regression")


def compute_scores(reports: Sequence[fr.RoundReport], canaries: int, sampled: float, expected: int, z: float) -> Floats:
    """Computes the log-likelihood ratio of present against absent, for each canary, [canaries].

    Args:
        reports: The rounds, from parameters of zero.
        canaries: How many canaries there are.
        sampled: q.
        expected: m.
        z: The noise multiplier that the attacker assumes.
    """
    scores, before = np.zeros(canaries), np.zeros(canaries)
    for report in reports:
        after = report.parameters[:canaries].astype(np.float64)
        moved = (after - before) * expected / report.metrics[NORM_BOUND]
        exponent = np.clip((2 * moved - 1) / (2 * z**2), -500.0, 500.0)
        scores += np.log((1 - sampled) + sampled * np.exp(exponent))
        before = after
    return scores


def bound_epsilon(scores: Floats, present: NDArray[np.bool_], error: float) -> float:
    """Returns a lower bound of ε that holds with probability 1 − ``error``.

    Args:
        scores: Of all trials; high scores are guessed to be present.
        present: Whether they are.
        error: The probability that the bound is wrong.
    """
    first = np.arange(len(scores)) % 2 == 0
    thresholds = np.quantile(scores[first], np.linspace(0.005, 0.995, 199))
    guesses = [(threshold, sign) for threshold in thresholds for sign in (1, -1)]

    def bound(part: NDArray[np.bool_], threshold: float, sign: int) -> float:
        hit, wrong = (present, ~present) if sign > 0 else (~present, present)
        guessed = sign * scores > sign * threshold
        (k, n), (false, m) = ((int((guessed & each & part).sum()), int((each & part).sum())) for each in (hit, wrong))
        low = stats.beta.ppf(error / 2, k, n - k + 1) if k else 0.0
        high = stats.beta.ppf(1 - error / 2, false + 1, m - false) if false < m else 1.0
        return log((low - DELTA) / high) if low > DELTA else -inf

    threshold, sign = max(guesses, key=lambda guess: bound(first, *guess))
    return max(0.0, bound(~first, threshold, sign))


def audit(row: Row, runs: int, canaries: int, error: float) -> tuple[float, float]:
    """Trains the runs of a row. Returns the ε that the full noise claims, and the lower bound of the row's own."""
    rng = np.random.default_rng(len(row.label))
    torch.manual_seed(0)
    model = torch.nn.Linear(canaries + 2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    expected = round((canaries + OTHERS) * row.sections["sampled"])
    sampled = expected / (canaries + OTHERS)
    claim, scores, present = 0.0, [], []
    z = noise = None
    for seed in range(runs):
        planted = rng.random(canaries) < 0.5
        federation = build_federation(planted, seed)
        if z is None:
            first = next(fr.iter_rounds(build_experiment(row, canaries, 0, None), federation=federation, model=model))
            z = first.metrics["privacy/noise_multiplier"]
            noise = None if row.share == 1 else z * row.share or NONE
        experiment = build_experiment(row, canaries, seed + 1, noise)
        reports = list(fr.iter_rounds(experiment, federation=federation, model=model))
        claim = reports[-1].metrics[EPSILON] if row.share == 1 else CLAIMED
        scores.append(compute_scores(reports, canaries, sampled, expected, z * (row.share or 0.1)))
        present.append(planted)
    return claim, bound_epsilon(np.concatenate(scores), np.concatenate(present), error)


def find_problem(row: Row, claim: float, bound: float) -> str | None:
    """Returns what a row shows to be wrong; None if it shows what it should."""
    if row.share == 1:
        return None if bound <= claim else "more is spent than claimed"
    if row.share:
        return None if bound > claim else "half of the noise was not noticed"
    return None if bound >= 2 else "missing noise was not noticed"


def main() -> int:
    """Prints one line per row, and returns the exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--canaries", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trials = arguments.runs * arguments.canaries
    print(f"{trials:,} trials per row; δ = {DELTA:g}; all bounds hold together with 95 %\n")
    print("| mechanism | noise | claimed ε | lower bound |\n|---|---|---|---|")
    problems = []
    for row in ROWS:
        claim, bound = audit(row, arguments.runs, arguments.canaries, ERROR / len(ROWS))
        noise = "off" if not row.share else f"{row.share:g} of the claim's"
        print(f"| {row.name} | {noise} | {claim:.2f} | {bound:.2f} |", flush=True)
        problems += [f"{row.label}: {problem}" for problem in [find_problem(row, claim, bound)] if problem]
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
