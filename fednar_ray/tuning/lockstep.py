"""Trains the federations of several trials together."""

from collections.abc import Sequence

from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.tuning.trial_federation import TrialFederation


def train_together(federations: Sequence[TrialFederation], until: Sequence[int]) -> list[str | None]:
    """Trains each federation until its number of rounds.

    Args:
        federations: Federations of one trial or of several.
        until: For each federation, how many of its rounds are trained afterwards.

    Returns:
        For each federation, why it failed; None if it did not.
    """
    return [train_alone(federation, rounds) for federation, rounds in zip(federations, until, strict=True)]


def train_alone(federation: TrialFederation, until: int) -> str | None:
    """Trains one federation until ``until`` of its rounds are trained, and returns why it failed, if it did."""
    try:
        federation.train(until)
    except (RunFailed, BadInput) as error:
        return str(error)
    return None
