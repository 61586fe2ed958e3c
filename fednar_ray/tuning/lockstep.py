"""Trains the federations of several trials together, round by round."""

from collections.abc import Sequence

from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.federated.pack_trainer import PackTrainer
from fednar_ray.tuning.trial_federation import TrialFederation


def train_together(
    federations: Sequence[TrialFederation], until: Sequence[int], pack: PackTrainer | None = None
) -> list[str | None]:
    """Trains each federation until its number of rounds.

    Args:
        federations: Federations of one trial or of several.
        until: For each federation, how many of its rounds are trained afterwards.
        pack: Trains the clients of all federations as rows of one matrix; None: each federation trains its own.

    Returns:
        For each federation, why it failed; None if it did not.
    """
    failures: list[str | None] = [None] * len(federations)
    while active := [
        i for i, federation in enumerate(federations) if failures[i] is None and federation.rounds < until[i]
    ]:
        if pack is not None and len(active) > 1:
            rounds = (federations[i].start_next_round() for i in active)
            pack.train_ahead([each for each in rounds if each is not None])
        for i in active:
            failures[i] = train_alone(federations[i], until[i] if pack is None else federations[i].rounds + 1)
    return failures


def train_alone(federation: TrialFederation, until: int) -> str | None:
    """Trains one federation until ``until`` of its rounds are trained, and returns why it failed, if it did."""
    try:
        federation.train(until)
    except (RunFailed, BadInput) as error:
        return str(error)
    return None
