"""Cohorts on Ray actors: ``pooled`` (any actor takes any cohort) and ``dedicated`` (an actor a client)."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from fednar_ray.data.federation import Shards
from fednar_ray.errors import RunFailed
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.ray_session import ActorPlace, RaySession
from fednar_ray.local_training import TrainingPlan
from fednar_ray.messages import Broadcast, CohortTask, CohortUpdate

OUTSTANDING_PER_ACTOR = 2  # one trains, one waits: an actor never idles between cohorts


class RayPool:
    """Actors that train one run's cohorts."""

    def __init__(self, session: RaySession, plan: ActorPlan, actors: list[Any], route: Callable[[int], int] | None):
        self._session, self._plan, self._actors = session, plan, actors
        self._route = route
        self._busy = False

    @classmethod
    def pooled(cls, session: RaySession, actors: ActorPlan, plan: TrainingPlan, shards: Shards) -> "RayPool":
        """Each actor hosts any client; shards lie once in each node's shared memory."""
        pool = cls(session, actors, session.lease(actors), None)
        plan_ref, shards_ref = ray.put(plan), ray.put(shards)
        return pool._prepared([actor.prepare.remote(plan_ref, shards_ref) for actor in pool._actors])

    @classmethod
    def dedicated(cls, session: RaySession, actors: ActorPlan, plan: TrainingPlan, shards: Shards) -> "RayPool":
        """Exactly one actor a client, which gets its own shard and no other."""
        pool = cls(session, actors, session.lease(actors), lambda client_id: client_id)
        plan_ref = ray.put(plan)
        return pool._prepared([actor.prepare.remote(plan_ref, shards.only(i)) for i, actor in enumerate(pool._actors)])

    def _prepared(self, refs: list[Any]) -> "RayPool":
        try:
            _get(refs)
        except BaseException:
            self._busy = True
            self.close()
            raise
        return self

    def places(self) -> list[ActorPlace]:
        """Where the actors live, by actor."""
        places: list[ActorPlace] = _get([actor.place.remote() for actor in self._actors])
        return places

    def train(self, broadcast: Broadcast, tasks: Sequence[CohortTask]) -> Iterator[CohortUpdate]:
        """The updates of ``tasks`` in their order; tasks are sent in that order to whichever actor is free.

        At most two results an actor are outstanding, so the driver's memory does not grow with the round.
        """
        self._busy = True
        broadcast_ref = ray.put(broadcast)
        waiting = deque(enumerate(tasks))
        running: dict[Any, tuple[int, int]] = {}  # reference → task, actor
        arrived: dict[int, CohortUpdate] = {}
        loads = [0] * len(self._actors)
        for due in range(len(tasks)):
            while due not in arrived:
                while waiting and len(running) + len(arrived) < OUTSTANDING_PER_ACTOR * len(self._actors):
                    index, task = waiting.popleft()
                    actor = self._choose(task, loads)
                    loads[actor] += 1
                    running[self._actors[actor].train.remote(broadcast_ref, task)] = (index, actor)
                ready, _ = ray.wait(list(running), num_returns=1)
                index, actor = running.pop(ready[0])
                loads[actor] -= 1
                arrived[index] = _get(ready[0])
            yield arrived.pop(due)
        self._busy = False

    def _choose(self, task: CohortTask, loads: Sequence[int]) -> int:
        """The client's own actor, or else the least loaded."""
        if self._route is not None:
            return self._route(task.client_ids[0])
        return min(range(len(loads)), key=loads.__getitem__)

    def close(self) -> None:
        """Give the actors back to the session; end them where a round was left unfinished."""
        if self._busy:
            for actor in self._actors:
                ray.kill(actor)
        else:
            self._session.give_back(self._plan, self._actors)
        self._actors = []


def _get(refs: Any) -> Any:
    """``ray.get``, with errors as they were raised, or named."""
    try:
        return ray.get(refs)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except RayActorError as error:
        raise RunFailed(f"an actor was lost: {error}") from error
