"""Asks questions about the files of silos, on the nodes where the files are."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import CapacityError, DataError
from fednar_ray.data.files import Answer, Item
from fednar_ray.execution.capacity import Footprint
from fednar_ray.execution.ray_errors import unwrap_task_error
from fednar_ray.execution.scheduling import build_actor_options
from fednar_ray.execution.session import RaySession
from fednar_ray.execution.silos import plan_silos


class LocalSurvey:
    """Asks questions about files that are on this machine."""

    def __call__(self, question: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        """Returns the answers, in the order of the items.

        Raises:
            DataError: Some files cannot be read; the message names each of their silos.
        """
        return _collect_answers(items, lambda index: question(items[index]))


class RemoteSurvey:
    """Asks each silo on its own node, in a task that takes the resources that the silo's actor will take.

    Raises:
        CapacityError: A silo fits on no node.
    """

    def __init__(self, session: RaySession, settings: ExecutionSettings) -> None:
        self._session, self._time_limit = session, settings.capacity_timeout_seconds
        self._names = sorted(settings.silos or {})
        self._plan = plan_silos(settings, self._names, session.list_nodes(), Footprint(model_bytes=0))

    def __call__(self, question: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        """Returns the answers, in the order of the items.

        Raises:
            DataError: Some files cannot be read; the message names each of their silos.
            CapacityError: A silo does not answer in time.
        """
        slots = [self._names.index(item.name) for item in items]
        task, options = ray.remote(_answer), build_actor_options(self._plan, slots)
        refs = [task.options(**o).remote(question, item) for o, item in zip(options, items, strict=True)]
        _, late = ray.wait(refs, num_returns=len(refs), timeout=self._time_limit)
        if late:
            for ref in refs:
                ray.cancel(ref, force=True)
            silent = ", ".join(item.name for ref, item in zip(refs, items, strict=True) if ref in late)
            text = f"execution.silos: no answer from {silent} within {self._time_limit:g} s"
            raise CapacityError(f"{text}; {self._session.describe_shortage()}")
        return _collect_answers(items, lambda index: ray.get(refs[index]))


def _answer(question: Callable[[Any], Answer], item: Any) -> Answer:
    """Answers a question on a silo's node."""
    return question(item)


def _collect_answers(items: Sequence[Item], get: Callable[[int], Answer]) -> list[Answer]:
    answers, problems = [], []
    for index, item in enumerate(items):
        try:
            answers.append(get(index))
        except (DataError, RayError) as error:
            cause = unwrap_task_error(error) if isinstance(error, RayTaskError) else error
            if not isinstance(cause, DataError | RayError):
                raise cause from None
            problems.append(f"execution.silos.{item.name}.data: {cause}")
    if problems:
        raise DataError("\n".join(problems))
    return answers
