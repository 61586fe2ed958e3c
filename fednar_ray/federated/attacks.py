"""Simulated attacks: which clients send wrong updates, and what their updates are multiplied by."""

from collections.abc import Mapping

import numpy as np

from fednar_ray.config import AttackSettings
from fednar_ray.core.random import Purpose, generator


def draw_attack_factors(settings: AttackSettings, clients: int, seed: int) -> Mapping[int, float]:
    """Draws the attackers, for the whole run.

    Args:
        settings: Which shares of the clients send NaN, or updates scaled by ``factor``.
        clients: N, the number of all clients.
        seed: The experiment's seed.

    Returns:
        What each attacker's update is multiplied by, by client id: NaN or ``settings.factor``.
    """
    bad, scaled = (round(share * clients) for share in (settings.nan, settings.scaled))
    if not bad and not scaled:
        return {}
    order = generator(seed, Purpose.CORRUPTION).permutation(clients).tolist()
    return dict.fromkeys(order[:bad], np.nan) | dict.fromkeys(order[bad : bad + scaled], settings.factor)
