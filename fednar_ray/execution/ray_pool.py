"""Cohorts on Ray actors: ``pooled`` (any actor takes any cohort) and ``dedicated`` (an actor a client)."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from fednar_ray.data.federation import Federation
from fednar_ray.errors import RunFailed
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.places import ActorPlace
from fednar_ray.execution.ray_session import RaySession
from fednar_ray.local_training import TrainingPlan
from fednar_ray.messages import Broadcast, CohortTask, CohortUpdate, Readout, Scores, ScoringTask

OUTSTANDING_PER_ACTOR = 2  # one trains, one waits: an actor never idles between cohorts
WITHIN_CALL_BYTES = 96_000

Task = TypeVar("Task", CohortTask, ScoringTask)


class RayPool:
    """Actors that train one run's cohorts, and score. They start and warm up while the driver goes on."""

    def __init__(self, session: RaySession, plan: ActorPlan, *, dedicated: bool) -> None:
        self._session, self._plan, self._dedicated = session, plan, dedicated
        self._actors = session.lease(plan)
        self._starting: list[Any] = []
        self._busy = True  # until the actors have answered

    @classmethod
    def pooled(
        cls, session: RaySession, actors: ActorPlan, plan: TrainingPlan, federation: Federation, warm_up: Sequence[int]
    ) -> "RayPool":
        """Each actor hosts any client; shards lie once in each node's shared memory."""
        pool = cls(session, actors, dedicated=False)
        shared = [ray.put(value) for value in (plan, federation.shards, federation.splits())]
        pool._starting = [actor.prepare.remote(*shared, tuple(warm_up)) for actor in pool._actors]
        return pool

    @classmethod
    def dedicated(cls, session: RaySession, actors: ActorPlan, plan: TrainingPlan, federation: Federation) -> "RayPool":
        """Exactly one actor a client, which gets its own shard and no other."""
        pool = cls(session, actors, dedicated=True)
        shared, splits = ray.put(plan), ray.put(federation.splits())
        pool._starting = [
            actor.prepare.remote(shared, federation.shards.only(i), splits, (i,))
            for i, actor in enumerate(pool._actors)
        ]
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
        """The updates of ``tasks`` in their order; tasks are sent in that order to whichever actor is free."""
        shared = _shared(broadcast)
        own = [task.client_ids[0] for task in tasks] if self._dedicated else [None] * len(tasks)
        return self._stream(lambda actor, task: actor.train.remote(shared, task), tasks, own)

    def score(self, readout: Readout, tasks: Sequence[ScoringTask]) -> Iterator[Scores]:
        """The scores of ``tasks``, in their order; a client's own examples are scored where they lie."""
        shared = _shared(readout)
        own = [task.client_id for task in tasks]
        return self._stream(lambda actor, task: actor.score.remote(shared, task), tasks, own)

    def _stream(
        self, send: Callable[[Any, Task], Any], tasks: Sequence[Task], own: Sequence[int | None]
    ) -> Iterator[Any]:
        """Results in the order of ``tasks``. ``own``: the one actor that may take a task; None: the least loaded.

        At most two results an actor are outstanding, so the driver's memory does not grow with the round.
        """
        self._await_start()
        self._busy = True
        waiting = deque(enumerate(tasks))
        running: dict[Any, tuple[int, int]] = {}  # reference → task, actor
        arrived: dict[int, Any] = {}
        loads = [0] * len(self._actors)
        for due in range(len(tasks)):
            while due not in arrived:
                while waiting and len(running) + len(arrived) < OUTSTANDING_PER_ACTOR * len(self._actors):
                    index, task = waiting.popleft()
                    chosen = own[index]
                    actor = min(range(len(loads)), key=loads.__getitem__) if chosen is None else chosen
                    loads[actor] += 1
                    running[send(self._actors[actor], task)] = (index, actor)
                ready, _ = ray.wait(list(running), num_returns=1)
                index, actor = running.pop(ready[0])
                loads[actor] -= 1
                arrived[index] = _get(ready[0])
            yield arrived.pop(due)
        self._busy = False

    def close(self) -> None:
        """Give the actors back to the session; end them where a start or a round was left unfinished."""
        if self._busy:
            for actor in self._actors:
                ray.kill(actor)
        else:
            self._session.give_back(self._plan, self._actors)
        self._actors = []


def _shared(message: Broadcast | Readout) -> Any:
    """What the calls of a round share: by reference where it is large.

    Ray carries up to 100 KB within a call, which then need not wait for the object store.
    """
    vectors = (getattr(message, name, None) for name in ("parameters", "control", "buffers"))
    size = sum(vector.nbytes for vector in vectors if vector is not None)
    return message if size <= WITHIN_CALL_BYTES else ray.put(message)


def _get(refs: Any) -> Any:
    """``ray.get``, with errors as they were raised, or named."""
    try:
        return ray.get(refs)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except RayActorError as error:
        raise RunFailed(f"an actor was lost: {error}") from error
