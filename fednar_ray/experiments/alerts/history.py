"""Keeps what the checks need to know about a run: its last rounds, and a summary of all rounds before."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.algorithms.regularizers import CLIPPING
from fednar_ray.config import Experiment
from fednar_ray.core.client_names import ClientNames
from fednar_ray.core.reports import RoundRecord

WINDOW = 10  # rounds that the slower checks look at
SOON, LONGEST = 5, 100  # rounds that a median is taken over; rounds that are kept
FAR_ABOVE = 20.0  # ‖v‖/A above which less than a twentieth of each step is left
FAR = 0.5  # ‖Δ‖/‖x‖ above which the steps of a round are too long
EXPLAINED = 3.0  # ‖Δ‖/(K·η·‖v‖) above which a client's steps do not explain its update


class ChanceLevel(NamedTuple):
    """The value of a metric that a model reaches without having learned anything."""

    metric: str  # accuracy, or rmse
    value: float  # the share of the most frequent label; the labels' standard deviation

    def compute_progress(self, metrics: Mapping[str, float]) -> float:
        """Computes how far a model is from chance (0) to perfect (1).

        Args:
            metrics: A round's metrics. The validation set is used if it was evaluated, else the test set.

        Returns:
            The share of the way; NaN if neither was evaluated.
        """
        for split in ("validation", "test"):
            reached = metrics.get(f"{split}_{self.metric}")
            if reached is not None and self.value not in (0.0, 1.0):
                gain = reached - self.value if self.metric == "accuracy" else self.value - reached
                return gain / (1 - self.value if self.metric == "accuracy" else self.value)
        return math.nan


@dataclass(slots=True)
class RunHistory:
    """The rounds of a run, as the checks use them."""

    experiment: Experiment
    chance: ChanceLevel | None
    client_names: ClientNames = ()
    is_compared: bool = False
    first: Mapping[str, float] = field(default_factory=dict)  # metrics of the first round with an update
    recent: deque[RoundRecord] = field(default_factory=lambda: deque(maxlen=LONGEST))
    best_loss: float = math.inf  # of training
    mild_bound: float = 0.0  # the A_0 that would have clipped at most half of the steps in every round
    healthy_bound: float = 0.0  # the same for the rounds up to the one with the best training loss
    best_progress: float = -math.inf

    def add(self, record: RoundRecord) -> None:
        """Adds the record of the next round, and updates the summary."""
        metrics = record.metrics
        self.recent.append(record)
        self.mild_bound = max(self.mild_bound, self._compute_mild_bound(metrics))
        if "train_loss" in metrics:
            self.first = self.first or metrics
            if metrics["train_loss"] <= self.best_loss:
                self.best_loss, self.healthy_bound = metrics["train_loss"], self.mild_bound
        if self.chance is not None:
            self.best_progress = max(
                self.best_progress, np.nan_to_num(self.chance.compute_progress(metrics), nan=-math.inf)
            )

    @property
    def rounds(self) -> int:
        """The number of rounds added."""
        return self.recent[-1].round_index + 1

    def get_last(self, name: str, count: int) -> npt.NDArray[np.float64]:
        """Returns a metric in the last rounds that have it, [≤ count]."""
        values = [record.metrics[name] for record in self.recent if name in record.metrics]
        return np.array(values[-count:])

    def get_progress(self, count: int) -> npt.NDArray[np.float64]:
        """Returns the share of the way from chance to perfect in the last evaluations, [≤ count]."""
        values = [] if self.chance is None else [self.chance.compute_progress(record.metrics) for record in self.recent]
        return np.array([value for value in values if not math.isnan(value)][-count:])

    def compute_median(self, name: str) -> float:
        """Returns the median of a metric over the last rounds; NaN if no round has it."""
        values = self.get_last(name, SOON)
        return float(np.median(values)) if len(values) else math.nan

    @property
    def norm_in_bounds(self) -> float:
        """‖v‖/A over the last rounds."""
        return divide(self.compute_median("step_norm"), self.compute_median("clip_bound"))

    def _compute_mild_bound(self, metrics: Mapping[str, float]) -> float:
        """Computes the A_0 that would have clipped at most half of a round's steps; infinite if ‖v‖ is not finite.

        A norm exceeds twice its mean in at most half of the steps, however the norms are spread (Markov's inequality).
        """
        if "step_norm" not in metrics:
            return 0.0
        norm = max(2 * metrics["step_norm"], metrics.get("step_norm_p90", 0.0))
        in_bounds = divide(norm, metrics.get("clip_bound", math.nan))
        return in_bounds * self.experiment.regularizer.clip_bound if math.isfinite(in_bounds) else math.inf

    def may_lengthen(self, factor: float) -> bool:
        """Returns whether ``factor`` times longer steps would move parameters by at most half their norm per round."""
        return len(self.moved) > 0 and bool(self.moved.max() * factor <= FAR)

    @property
    def decay_share(self) -> float:
        """λ‖x‖ relative to the norm of a step, in which ``decoupled`` has clipped the gradient."""
        if self.experiment.regularizer.name == "none":
            return 0.0
        step = self.compute_median("step_norm")
        if self.experiment.regularizer.name == "decoupled":
            step = min(step, self.compute_median("clip_bound"))
        return divide(self.compute_median("weight_decay") * self.compute_median("parameter_norm"), step)

    @property
    def clips(self) -> bool:
        """Whether the regularizer clips steps."""
        return self.experiment.regularizer.name in CLIPPING

    @property
    def clips_nearly_everything(self) -> bool:
        """Whether clipping shortens each step to less than a twentieth."""
        shares = self.get_last("clip_fraction", SOON)
        whole = len(shares) == SOON and bool(shares.min() >= 0.99)
        return self.clips and whole and self.norm_in_bounds >= FAR_ABOVE

    @property
    def moved(self) -> npt.NDArray[np.float64]:
        """‖Δ‖/‖x‖ in each of the last rounds that have an update."""
        lengths, norms = self.get_last("update_norm", LONGEST), self.get_last("parameter_norm", LONGEST)
        return np.array([divide(length, norm) for length, norm in zip(lengths, norms, strict=False)])

    @property
    def unexplained(self) -> bool:
        """Whether updates are longer than the clients' own steps can explain."""
        steps = self.experiment.federation.local_steps
        longest = (steps or math.nan) * self.compute_median("local_lr") * self.compute_median("step_norm_p90")
        return self.compute_median("update_norm") > EXPLAINED * longest


def divide(value: float, by: float) -> float:
    """Returns ``value / by``; infinite if ``by`` is zero."""
    return value / by if by else math.inf
