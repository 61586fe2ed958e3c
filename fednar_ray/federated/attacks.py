"""Clients that send what they should not: which, and by what their updates are multiplied."""

from collections.abc import Mapping

import numpy as np

from fednar_ray.config import AttackSettings
from fednar_ray.core.random import Purpose, generator


def corrupted_clients(settings: AttackSettings, clients: int, seed: int) -> Mapping[int, float]:
    """Client id → factor of its update (NaN, or ``settings.factor``), for fixed shares of ``clients``."""
    bad, scaled = (round(share * clients) for share in (settings.nan, settings.scaled))
    if not bad and not scaled:
        return {}
    order = generator(seed, Purpose.CORRUPTION).permutation(clients).tolist()
    return dict.fromkeys(order[:bad], np.nan) | dict.fromkeys(order[bad : bad + scaled], settings.factor)
