"""The interface of the pools that train and score clients."""

from typing import Protocol

from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.federated.client_pool import ClientPool


class ExecutionPool(ClientPool, Protocol):
    """A pool that trains and scores for one run. ``SerialPool`` and ``ActorPool`` implement it.

    The round loop uses only the ``ClientPool`` part of it.
    """

    def wait_until_ready(self, *, first: bool = False) -> None:
        """Waits until the pool has started and warmed up, or only until the first of its actors has."""

    def list_actors(self) -> list[ActorInfo]:
        """Returns where the actors live, by slot; an empty list if there are none."""
