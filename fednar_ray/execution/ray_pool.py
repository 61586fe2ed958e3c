"""Cohorts on Ray actors: ``pooled`` (any actor takes any cohort) and ``dedicated`` (an actor a client)."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from fednar_ray.data.federation import Shards
from fednar_ray.errors import RunFailed
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.places import ActorPlace
from fednar_ray.execution.ray_session import RaySession
from fednar_ray.local_training import TrainingPlan
from fednar_ray.messages import Broadcast, CohortTask, CohortUpdate

OUTSTANDING_PER_ACTOR = 2  # one trains, one waits: an actor never idles between cohorts


class RayPool:
    """Actors that train one run's cohorts. They start and warm up while the driver goes on."""

    def __init__(self, session: RaySession, plan: ActorPlan, route: Callable[[int], int] | None) -> None:
        self._session, self._plan, self._route = session, plan, route
        self._actors = session.lease(plan)
        self._starting: list[Any] = []
        self._busy = True  # until the actors have answered

    @classmethod
    def pooled(
        cls, session: RaySession, actors: ActorPlan, plan: TrainingPlan, shards: Shards, warm_up: tuple[int, ...]
    ) -> "RayPool":
        """Each actor hosts any client; shards lie once in each node's shared memory."""
        pool = cls(session, actors, None)
        plan_ref, shards_ref = ray.put(plan), ray.put(shards)
        pool._starting = [actor.prepare.remote(plan_ref, shards_ref, warm_up) for actor in pool._actors]
        return pool

    @classmethod
    def dedicated(cls, session: RaySession, actors: ActorPlan, plan: TrainingPlan, shards: Shards) -> "RayPool":
        """Exactly one actor a client, which gets its own shard and no other."""
        pool = cls(session, actors, lambda client_id: client_id)
        plan_ref = ray.put(plan)
        pool._starting = [a.prepare.remote(plan_ref, shards.only(i), (i,)) for i, a in enumerate(pool._actors)]
        return pool

    def _await_start(self) -> None:
        """Raises what went wrong in an actor's start."""
        if self._starting:
            _get(self._starting)
            self._starting, self._busy = [], False

    def places(self) -> list[ActorPlace]:
        """Where the actors live, by actor."""
        self._await_start()
        places: list[ActorPlace] = _get([actor.place.remote() for actor in self._actors])
        return places

    def train(self, broadcast: Broadcast, tasks: Sequence[CohortTask]) -> Iterator[CohortUpdate]:
        """The updates of ``tasks`` in their order; tasks are sent in that order to whichever actor is free.

        At most two results an actor are outstanding, so the driver's memory does not grow with the round.
        """
        self._await_start()
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
        """Give the actors back to the session; end them where a start or a round was left unfinished."""
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
