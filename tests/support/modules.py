"""Modules whose parameters are tied, or partly frozen."""

from torch import nn


def build_tied() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    module[2].weight = module[1].weight
    return module


def build_partly_frozen() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    module[0].requires_grad_(False)
    return module
