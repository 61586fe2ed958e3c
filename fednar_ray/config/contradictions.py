"""Finds contradictions between the sections of an experiment."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter
from pydantic_core import InitErrorDetails, ValidationError

from fednar_ray.config.execution import ExecutionSettings
from fednar_ray.config.federation import EvaluationSettings, FederationSettings
from fednar_ray.config.private_runs import find_poisson_problems, find_privacy_problems
from fednar_ray.config.problems import build_problem
from fednar_ray.config.secure_aggregation import UNKNOWN, find_secure_problems
from fednar_ray.config.source_base import DataSettings
from fednar_ray.config.tables import FolderSettings


def validate_sections(model: type[BaseModel], values: Any) -> dict[str, Any]:
    """Validates each section by itself.

    Args:
        model: The class whose fields are the sections.
        values: The sections before validation.

    Returns:
        The valid sections by name, with defaults for those that are not given. Invalid ones are left out.
    """
    valid: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        given = values.get(name) if isinstance(values, Mapping) else None
        if given is None:
            valid[name] = field.default
            continue
        try:
            valid[name] = build_section_adapter(model, name).validate_python(given)
        except ValidationError:
            continue
    return valid


@cache
def build_section_adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    """Builds the adapter that validates the section ``name`` of ``model`` by itself."""
    return TypeAdapter(get_type_hints(model, include_extras=True)[name])


def find_contradictions(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Finds contradictions between the sections that are valid by themselves."""
    data, federation = sections.get("data"), sections.get("federation")
    execution, model = sections.get("execution"), sections.get("model")
    if data is not None and data.partition.kind != "natural" and data.partition.clients is None:
        yield build_problem(("data", "partition", "clients"), None, "set the number of clients, or use kind: natural")
    if data is not None and data.partition.kind == "natural" and not data.has_groups:
        yield build_problem(
            ("data", "partition", "kind"), "natural", f"{data.source} has no groups; use iid, dirichlet, …"
        )
    if federation is not None:
        yield from _check_federation(federation, data.partition.clients if data is not None else None)
    yield from find_poisson_problems(sections)
    yield from find_privacy_problems(sections)
    if execution is not None and execution.placement == "dedicated" and execution.vectorize not in ("auto", 1):
        size = execution.vectorize
        yield build_problem(("execution", "vectorize"), size, "dedicated trains one client per actor; use 1 or auto")
    if execution is not None:
        yield from _check_execution(execution, data)
    if (evaluation := sections.get("evaluation")) is not None:
        yield from _check_evaluation(evaluation, execution)
    if (secure := sections.get("secure_aggregation", UNKNOWN)) is not None:
        yield from find_secure_problems(secure, sections)
    if data is not None and "model" in sections and model is None:
        yield build_problem(("model",), None, "a data section needs a model section")


def _check_evaluation(
    evaluation: EvaluationSettings, execution: ExecutionSettings | None
) -> Iterator[InitErrorDetails]:
    if evaluation.metrics is not None and execution is not None and execution.silos is not None:
        text = "needs the predictions for single examples, which may not leave a silo; remove it"
        yield build_problem(("evaluation", "metrics"), ", ".join(evaluation.metrics), text)


def _check_execution(execution: ExecutionSettings, data: DataSettings | None) -> Iterator[InitErrorDetails]:
    """Finds contradictions within ``execution``, and between it and the data."""
    place, silos, placement = "execution", execution.silos, execution.placement
    if silos is not None:
        named = ", ".join(silos)
        if not isinstance(data, FolderSettings):
            yield build_problem(
                (place, "silos"), named, "needs data.source: folder, since each silo reads its own file"
            )
        elif data.directory is not None:
            yield build_problem(
                ("data", "directory"), data.directory, "execution.silos says where the files are; set only one"
            )
        if placement == "pooled":
            text = "moves examples between nodes; with execution.silos use dedicated, or serial to read all files here"
            yield build_problem((place, "placement"), placement, text)
        if placement != "dedicated" and execution.vectorize not in ("auto", 1):
            text = "a silo trains its one client; use 1 or auto"
            yield build_problem((place, "vectorize"), execution.vectorize, text)
        if execution.strategy != "default":
            yield build_problem(
                (place, "strategy"),
                execution.strategy,
                "execution.silos places the actors; set only one",
            )
    elif isinstance(data, FolderSettings) and data.directory is None:
        yield build_problem(("data", "directory"), None, "folder needs the directory of its files, or execution.silos")
    if execution.precision == "tf32" and (placement == "serial" or execution.gpus_per_actor == 0):
        text = "needs a GPU, and clients train on the CPU here; use float32 or bfloat16"
        yield build_problem((place, "precision"), "tf32", text)
    if placement == "serial" and (execution.autoscale or execution.strategy != "default"):
        key = "autoscale" if execution.autoscale else "strategy"
        yield build_problem((place, key), getattr(execution, key), "serial starts no actors; use another placement")
    if execution.autoscale and execution.actors == "auto" and silos is None and placement in ("auto", "pooled"):
        yield build_problem((place, "actors"), "auto", "with execution.autoscale, set the largest number of actors")


def _check_federation(federation: FederationSettings, clients: int | None) -> Iterator[InitErrorDetails]:
    place, sampled, schedule = "federation", federation.clients_per_round, federation.participation
    if (federation.local_steps is None) == (federation.local_epochs is None):
        yield build_problem((place, "local_steps"), federation.local_steps, "set either local_steps or local_epochs")
    if clients is not None and sampled is not None and sampled > clients:
        text = f"is more than data.partition.clients ({clients}); use 1 to {clients}"
        yield build_problem((place, "clients_per_round"), sampled, text)
    if schedule is None:
        return
    if len(schedule) < federation.rounds:
        yield build_problem(
            (place, "participation"), len(schedule), f"lists fewer rounds than rounds ({federation.rounds})"
        )
    for index, ids in enumerate(schedule):
        if not ids or len(set(ids)) < len(ids):
            yield build_problem((place, "participation", index), list(ids), "list at least one client, and none twice")
        if clients is not None and any(client >= clients for client in ids):
            yield build_problem((place, "participation", index), list(ids), f"client ids run from 0 to {clients - 1}")
