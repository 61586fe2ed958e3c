"""Keeps what decides a result's bytes when a run is resumed, repeated or compared: how ``auto`` was resolved."""

from typing import Any

from fednar_ray.config import Experiment


def fix_execution(experiment: Experiment, group_size: int | None, compiled: bool | None) -> Experiment:
    """Replaces ``vectorize: auto`` and ``compile: auto`` by what was chosen when a run was started.

    Args:
        experiment: The experiment.
        group_size: C of that run; None if it is not known.
        compiled: Whether its steps were compiled; None if it is not known.
    """
    settings = experiment.execution
    resolved: dict[str, Any] = {}
    if settings.vectorize == "auto" and group_size is not None:
        resolved["vectorize"] = group_size
    if settings.compile == "auto" and compiled is not None:
        resolved["compile"] = "on" if compiled else "off"
    return experiment.model_copy(update={"execution": settings.model_copy(update=resolved)})
