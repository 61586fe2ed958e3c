"""Clients that mask made-up updates, with keys that are the same in every run of a test."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from fednar_ray.secure.masked_sum import MaskedSum
from fednar_ray.secure.messages import Attempt, MaskedUpdate, Reveal
from fednar_ray.secure.plan import SecurePlan, compute_threshold
from fednar_ray.secure.silo import Silo, find_directory
from fednar_ray.secure.words import WordVector


def build_plan(directory: Path, **changes: Any) -> SecurePlan:
    settings: dict[str, Any] = {
        "run": "run", "seed": 0, "threshold": 0.67, "bits": 24, "clip": 1.0, "steps": None, "most_examples": 50,
        "weighted": True, "directory": str(directory),
    }  # fmt: skip
    return SecurePlan(**settings | changes)


def build_silos(plan: SecurePlan, count: int) -> dict[int, Silo]:
    """Builds clients whose keys, and so whose masks, do not depend on chance."""
    for client_id in range(count):
        folder = find_directory(plan, client_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "keys").write_bytes(np.random.default_rng(client_id).bytes(64))
    return {client_id: Silo(plan, client_id) for client_id in range(count)}


def start_attempt(plan: SecurePlan, silos: dict[int, Silo], number: int = 0, **changes: Any) -> Attempt:
    settings: dict[str, Any] = {
        "run": plan.run, "round_index": 2, "number": number, "members": tuple(silos),
        "keys": {client_id: silo.public_key for client_id, silo in silos.items()},
        "threshold": compute_threshold(plan.threshold, len(silos)),
    }  # fmt: skip
    return Attempt(**settings | changes)


def mask(silo: Silo, client_id: int, attempt: Attempt, vector: WordVector) -> MaskedUpdate:
    masked = vector.copy()
    packages = silo.mask(attempt, masked)
    return MaskedUpdate(client_ids=(client_id,), vector=masked, packages=packages, train_seconds=0.0)


def collect(
    silos: dict[int, Silo], attempt: Attempt, vectors: dict[int, WordVector], lost: Collection[int] = ()
) -> MaskedSum:
    """Returns the sum of the masked vectors of all clients but those that are lost before they send theirs."""
    masked = MaskedSum(attempt)
    for client_id, silo in silos.items():
        if client_id not in lost:
            masked.add(mask(silo, client_id, attempt, vectors[client_id]))
    return masked


def reveal(silos: dict[int, Silo], masked: MaskedSum, lost: Collection[int] = ()) -> list[Reveal]:
    """Returns what all clients reveal but those that are lost before they answer."""
    request = masked.build_request()
    tasks = [task for task in masked.build_tasks() if task.client_ids[0] not in lost]
    return [silos[task.client_ids[0]].reveal(request, task) for task in tasks]
