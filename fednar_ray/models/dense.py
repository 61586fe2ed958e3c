"""Models of flattened inputs."""

from typing import Any

from torch import Tensor, nn


class NumericSequential(nn.Sequential):
    """Layers in sequence, for numeric inputs. Integers are converted to float32 first."""

    def forward(self, input: Tensor) -> Any:
        """Maps inputs [n, …] of any real type to the last layer's outputs."""
        numbers = input if input.is_floating_point() else input.float()
        return super().forward(numbers)  # type: ignore[no-untyped-call]


def logistic(features: int, outputs: int) -> NumericSequential:
    """Builds one linear layer: logistic regression, or linear regression."""
    return NumericSequential(nn.Flatten(), nn.Linear(features, outputs))


def mlp(features: int, hidden: int, outputs: int, dropout: float = 0.0) -> NumericSequential:
    """Builds a perceptron with one hidden layer and ReLU."""
    return NumericSequential(nn.Flatten(), *head(features, hidden, outputs, dropout))


def head(features: int, hidden: int, outputs: int, dropout: float) -> tuple[nn.Module, ...]:
    """Builds a hidden layer with ReLU, and the output layer."""
    return (
        nn.Linear(features, hidden),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(hidden, outputs),
    )
