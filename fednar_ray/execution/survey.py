"""Questions to the files of silos, answered on the node that holds each file."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import CapacityError, DataError
from fednar_ray.data.files import Answer, Item
from fednar_ray.execution.capacity import Footprint
from fednar_ray.execution.scheduling import options_for
from fednar_ray.execution.session import RaySession
from fednar_ray.execution.silos import plan_silos


class LocalSurvey:
    """Puts questions to files that all lie on this machine."""

    def __call__(self, question: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        """The answers, in the order of the items. Raises DataError, which names every silo that has none."""
        return _gathered(items, lambda index: question(items[index]))


class RemoteSurvey:
    """Puts questions to each silo on its own node, with the resources that its actor will take."""

    def __init__(self, session: RaySession, settings: ExecutionSettings) -> None:
        """Raises CapacityError where a silo has no node."""
        self._session, self._limit = session, settings.capacity_timeout_seconds
        self._names = sorted(settings.silos or {})
        self._plan = plan_silos(settings, self._names, session.nodes(), Footprint(model_bytes=0))

    def __call__(self, question: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        """As ``Here``. Raises CapacityError where a silo does not answer in time."""
        slots = [self._names.index(item.name) for item in items]
        task, options = ray.remote(_answered), options_for(self._plan, slots)
        refs = [task.options(**o).remote(question, item) for o, item in zip(options, items, strict=True)]
        _, late = ray.wait(refs, num_returns=len(refs), timeout=self._limit)
        if late:
            for ref in refs:
                ray.cancel(ref, force=True)
            silent = ", ".join(item.name for ref, item in zip(refs, items, strict=True) if ref in late)
            raise CapacityError(
                f"execution.silos: {silent}: no answer in {self._limit:g} s; {self._session.shortage()}"
            )
        return _gathered(items, lambda index: ray.get(refs[index]))


def _answered(question: Callable[[Any], Answer], item: Any) -> Answer:
    """Runs on a silo's node."""
    return question(item)


def _gathered(items: Sequence[Item], answer: Callable[[int], Answer]) -> list[Answer]:
    answers, problems = [], []
    for index, item in enumerate(items):
        try:
            answers.append(answer(index))
        except (DataError, RayError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if not isinstance(cause, DataError | RayError):
                raise cause from None
            problems.append(f"execution.silos.{item.name}.data: {cause}")
    if problems:
        raise DataError("\n".join(problems))
    return answers
