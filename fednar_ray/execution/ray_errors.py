"""How Ray's exceptions are read."""

from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from fednar_ray.execution.failure_policy import FailureKind


def unwrap_task_error(error: RayTaskError) -> Exception:
    """Returns what the code in an actor or task raised, or Ray's own error if that was no ``Exception``."""
    return error.cause if isinstance(error.cause, Exception) else error


def classify_actor_loss(error: RayError) -> FailureKind:
    """Returns why a call ended together with its actor."""
    return FailureKind.OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else FailureKind.ACTOR_LOST


def is_preempted(error: RayError) -> bool:
    """Returns whether the actor was lost because its node was taken away, which no call can cause."""
    return bool(getattr(error, "preempted", False))
