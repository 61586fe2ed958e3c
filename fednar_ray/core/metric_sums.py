"""Sums over evaluated examples, from which metrics are computed. Silos send only these about held-out examples."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

CALIBRATION_BINS = 15
"""Bins of equal width of the probability of the predicted class, 0 to 1."""
LOGITS_PER_UNIT, LOGIT_BINS = 16, 512
"""The histogram of logits: bins of width 1/16 from −16 to 16. Logits beyond are counted in the outermost bins."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMoments:
    """The number, the mean and Σ (y − mean)² of labels. Those of several sets of labels are added with ``+``."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, y: npt.NDArray[np.float32]) -> "LabelMoments":
        """Computes the moments of labels [n]."""
        numbers = y.astype(np.float64)
        mean = float(numbers.mean())
        return cls(count=len(y), mean=mean, squares=float(np.square(numbers - mean).sum()))

    def __add__(self, other: "LabelMoments") -> "LabelMoments":
        """Returns the moments of both sets (Chan, Golub and LeVeque, 1979)."""
        count, apart = self.count + other.count, other.mean - self.mean
        share = other.count / count if count else 0.0
        squares = self.squares + other.squares + apart * apart * self.count * share
        return LabelMoments(count=count, mean=self.mean + apart * share, squares=squares)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSums:
    """Sums over evaluated examples. The sums of several sets of examples are added with ``+``.

    Attributes:
        examples: How many examples.
        losses: Sum of their losses.
        log_losses: Sum of their cross-entropies; 0 in regression.
        correct: How many predictions are correct; 0 in regression.
        classes: Per class the number of labels, of predictions, and of correct predictions, [3, classes].
        overconfidence: Per bin of the predicted class's probability, the sum of this probability minus 1 for each
            correct prediction, [15].
        logits: Binary tasks: the number of positives and of negatives per bin of the logit, [2, 512].
        squares: Regression: Σ e² of the errors e, in the label's unit.
        absolutes: Regression: Σ |e|.
        labels: Regression: the moments of the labels.
    """

    examples: int
    losses: float
    correct: int
    classes: Counts
    log_losses: float = 0.0
    overconfidence: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    logits: Counts = field(default_factory=lambda: np.zeros((2, 0), dtype=np.int64))
    squares: float = 0.0
    absolutes: float = 0.0
    labels: LabelMoments = LabelMoments()

    def __add__(self, other: "MetricSums") -> "MetricSums":
        """Returns the sums over both sets."""
        classes = max(self.classes.shape[1], other.classes.shape[1])
        own, others = (np.pad(t.classes, ((0, 0), (0, classes - t.classes.shape[1]))) for t in (self, other))
        return MetricSums(
            examples=self.examples + other.examples,
            losses=self.losses + other.losses,
            log_losses=self.log_losses + other.log_losses,
            correct=self.correct + other.correct,
            classes=own + others,
            overconfidence=self.overconfidence + other.overconfidence,
            logits=self.logits + other.logits,
            squares=self.squares + other.squares,
            absolutes=self.absolutes + other.absolutes,
            labels=self.labels + other.labels,
        )
