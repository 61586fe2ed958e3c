"""Models of flattened inputs."""

from torch import nn


def logistic(features: int, outputs: int) -> nn.Sequential:
    """One linear layer: logistic regression, or linear regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, outputs))


def mlp(features: int, hidden: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """features–hidden–outputs with ReLU."""
    return nn.Sequential(nn.Flatten(), *head(features, hidden, outputs, dropout))


def head(features: int, hidden: int, outputs: int, dropout: float) -> tuple[nn.Module, ...]:
    """A hidden layer with ReLU, and the outputs."""
    return (
        nn.Linear(features, hidden),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(hidden, outputs),
    )
