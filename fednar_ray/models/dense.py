"""Models of flattened inputs."""

from typing import Any

from torch import Tensor, nn


class NumericSequential(nn.Sequential):
    """Layers in sequence, for inputs that are numbers: whole numbers become float32 first."""

    def forward(self, input: Tensor) -> Any:
        """[n, …] of any real type → the last layer's outputs."""
        numbers = input if input.is_floating_point() else input.float()
        return super().forward(numbers)  # type: ignore[no-untyped-call]


def logistic(features: int, outputs: int) -> NumericSequential:
    """One linear layer: logistic regression, or linear regression."""
    return NumericSequential(nn.Flatten(), nn.Linear(features, outputs))


def mlp(features: int, hidden: int, outputs: int, dropout: float = 0.0) -> NumericSequential:
    """features–hidden–outputs with ReLU."""
    return NumericSequential(nn.Flatten(), *head(features, hidden, outputs, dropout))


def head(features: int, hidden: int, outputs: int, dropout: float) -> tuple[nn.Module, ...]:
    """A hidden layer with ReLU, and the outputs."""
    return (
        nn.Linear(features, hidden),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(hidden, outputs),
    )
