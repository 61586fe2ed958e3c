"""Sums over evaluated examples, from which metrics are computed. Silos send only these about held-out examples."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSums:
    """Sums over evaluated examples. The sums of several sets of examples are added with ``+``.

    Attributes:
        examples: How many examples.
        losses: Sum of their losses.
        correct: How many predictions are correct; 0 in regression.
        classes: Per class the number of labels, of predictions, and of correct predictions, [3, classes].
        pairs: Binary tasks: the number of pairs of one positive and one negative example.
        ordered: The pairs in which the positive has the higher logit; a tie counts one half.
    """

    examples: int
    losses: float
    correct: int
    classes: npt.NDArray[np.int64]
    pairs: int = 0
    ordered: float = 0.0

    def __add__(self, other: "MetricSums") -> "MetricSums":
        """Returns the sums over both sets. Pairs are formed within a set only, never across two."""
        classes = max(self.classes.shape[1], other.classes.shape[1])
        own, others = (np.pad(t.classes, ((0, 0), (0, classes - t.classes.shape[1]))) for t in (self, other))
        return MetricSums(
            examples=self.examples + other.examples,
            losses=self.losses + other.losses,
            correct=self.correct + other.correct,
            classes=own + others,
            pairs=self.pairs + other.pairs,
            ordered=self.ordered + other.ordered,
        )
