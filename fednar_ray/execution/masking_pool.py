"""Actors of clients that mask their updates, so that the driver learns only the sum."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from fednar_ray.core.messages import ClientsLost, GroupTask
from fednar_ray.execution.actor_pool import ActorPool
from fednar_ray.execution.streams import GroupStream, RevealStream
from fednar_ray.secure.messages import MaskedBroadcast, MaskedUpdate, Reveal, UnmaskRequest, UnmaskTask, Withheld

FORGET_SECONDS = 10.0
"""How long a pool that closes waits for its clients to delete their keys."""


class MaskingPool(ActorPool):
    """A dedicated pool: one actor per client, which has the client's keys on its own disk.

    Attributes:
        run: What the clients call the run.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.run, self._public_keys = "", dict[int, bytes]()

    def list_public_keys(self, client_ids: Sequence[int]) -> Mapping[int, bytes]:
        """Returns the public keys of those clients whose actors have ever started. A client cannot change its key."""
        if not all(client_id in self._public_keys for client_id in client_ids):
            self.wait_until_ready()
        for slot in self._slots:
            if slot.info is not None and slot.info.public_key is not None:
                self._public_keys.setdefault(slot.index, slot.info.public_key)
        return {client_id: self._public_keys[client_id] for client_id in client_ids if client_id in self._public_keys}

    def train_masked(
        self, request: MaskedBroadcast, tasks: Sequence[GroupTask]
    ) -> Iterator[MaskedUpdate | Withheld | ClientsLost]:
        """Yields the masked updates of ``tasks``, in their order."""
        slots = [self._find_own_slot(task) for task in tasks]
        return self._run(GroupStream("train_masked", request, tasks, slots, self._policy))

    def reveal(self, request: UnmaskRequest, tasks: Sequence[UnmaskTask]) -> Iterator[Reveal | ClientsLost]:
        """Yields the shares of ``tasks``. Clients whose actors are starting are left out if the others suffice."""
        ready = [task for task in tasks if self._slots[task.client_ids[0]].is_ready]
        asked = ready if len(ready) >= request.attempt.threshold else tasks
        return self._run(RevealStream(request, asked, [task.client_ids[0] for task in asked], self._policy))

    def close(self) -> None:
        """Lets the clients delete their keys, and ends the actors or returns them to the session."""
        idle = [slot.actor for slot in self._slots if slot.is_ready and not slot.calls]
        forgotten = [actor.forget.remote() for actor in idle]
        if forgotten:
            ray.wait(forgotten, num_returns=len(forgotten), timeout=FORGET_SECONDS)
        super().close()
