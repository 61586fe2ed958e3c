"""What must hold across sections, and errors that name the place, the value, and what would be right.

Everything wrong with an experiment is collected and said at once.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from fednar_ray.config import renamed
from fednar_ray.config.settings import DataSettings, ExecutionSettings, FederationSettings, Settings
from fednar_ray.core.errors import shown, shown_text

LIMIT_PROBLEMS = 50
"""How many problems of a kind are told at once; nobody reads more, and each takes its time to describe."""


def valid_sections(model: type[BaseModel], values: Any) -> dict[str, Any]:
    """The sections of ``model`` in ``values`` that are valid by themselves, with defaults for those not given."""
    valid: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        given, section = values.get(name) if isinstance(values, Mapping) else None, _section(field.annotation)
        if given is None:
            valid[name] = field.default
        elif section is not None:
            try:
                valid[name] = section.model_validate(given)
            except ValidationError:
                continue
    return valid


def _section(annotation: Any) -> type[Settings] | None:
    """The section that an annotation such as ``DataSettings | None``, or a mapping to sections, holds."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _section(part))), None)


def across_sections(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Contradictions, as far as the sections they concern are valid by themselves."""
    data, federation = sections.get("data"), sections.get("federation")
    execution, model = sections.get("execution"), sections.get("model")
    if data is not None and data.partition.kind != "natural" and data.partition.clients is None:
        yield problem(("data", "partition", "clients"), None, "say how many clients, or use kind: natural")
    if data is not None and data.partition.kind == "natural" and not data.has_groups:
        yield problem(("data", "partition", "kind"), "natural", f"{data.source} names no groups; use iid, dirichlet, …")
    if federation is not None:
        yield from _within_federation(federation, data.partition.clients if data is not None else None)
    if execution is not None and execution.placement == "dedicated" and execution.vectorize not in ("auto", 1):
        width = execution.vectorize
        yield problem(("execution", "vectorize"), width, "dedicated trains one client an actor; use 1 or auto")
    if execution is not None:
        yield from _of_execution(execution, data)
    if data is not None and "model" in sections and model is None:
        yield problem(("model",), None, "a data section needs a model section")


def _of_execution(execution: ExecutionSettings, data: DataSettings | None) -> Iterator[InitErrorDetails]:
    """Contradictions of where clients train, by itself and with where the data are."""
    place, silos, placement = "execution", execution.silos, execution.placement
    in_folder = data is not None and data.source == "folder"
    if silos is not None:
        named = ", ".join(silos)
        if not in_folder:
            yield problem((place, "silos"), named, "each reads its own file, as data.source: folder describes it")
        if in_folder and data is not None and data.directory is not None:
            yield problem(("data", "directory"), data.directory, "execution.silos says where the files are; give one")
        if placement == "pooled":
            text = "moves examples between nodes; with execution.silos use dedicated, or serial to read all files here"
            yield problem((place, "placement"), placement, text)
        if placement != "dedicated" and execution.vectorize not in ("auto", 1):
            text = "a silo trains its one client; use 1 or auto"
            yield problem((place, "vectorize"), execution.vectorize, text)
        if execution.strategy != "default":
            yield problem(
                (place, "strategy"), execution.strategy, "execution.silos says which actor is where; give one"
            )
    elif in_folder and data is not None and data.directory is None:
        yield problem(("data", "directory"), None, "folder needs the directory of its files, or execution.silos")
    if placement == "serial" and (execution.autoscale or execution.strategy != "default"):
        key = "autoscale" if execution.autoscale else "strategy"
        yield problem((place, key), getattr(execution, key), "serial starts no actors; it belongs to the others")
    if execution.autoscale and execution.actors == "auto" and silos is None and placement in ("auto", "pooled"):
        yield problem((place, "actors"), "auto", "with execution.autoscale, say how many there are to be at most")


def _within_federation(federation: FederationSettings, clients: int | None) -> Iterator[InitErrorDetails]:
    place, sampled, schedule = "federation", federation.clients_per_round, federation.participation
    if (federation.local_steps is None) == (federation.local_epochs is None):
        yield problem((place, "local_steps"), federation.local_steps, "give local_steps or local_epochs, and not both")
    if clients is not None and sampled is not None and sampled > clients:
        text = f"is more than data.partition.clients ({clients}); use 1 to {clients}"
        yield problem((place, "clients_per_round"), sampled, text)
    if schedule is None:
        return
    if len(schedule) < federation.rounds:
        yield problem((place, "participation"), len(schedule), f"lists fewer rounds than rounds ({federation.rounds})")
    for index, ids in enumerate(schedule):
        if not ids or len(set(ids)) < len(ids):
            yield problem((place, "participation", index), list(ids), "name at least one client, and none twice")
        if clients is not None and any(client >= clients for client in ids):
            yield problem((place, "participation", index), list(ids), f"client ids run from 0 to {clients - 1}")


def problem(place: tuple[str | int, ...], value: Any, text: str) -> InitErrorDetails:
    """One problem, as pydantic reports it."""
    return InitErrorDetails(type=PydanticCustomError("experiment", "{text}", {"text": text}), loc=place, input=value)


def as_details(error: ValidationError, model: type[BaseModel]) -> list[InitErrorDetails]:
    """Pydantic's errors under our wording, one a place; an unknown key comes with its nearest known ones."""
    details: dict[tuple[str | int, ...], InitErrorDetails] = {}
    for entry in error.errors(include_url=False)[:LIMIT_PROBLEMS]:
        place = _known_place(entry["loc"])
        if place != entry["loc"] or place not in details:
            details.setdefault(place, _as_detail({**entry, "loc": place}, entry["loc"] != place, model))
    within = {place[:-1] for place in details if place and isinstance(place[-1], int)}
    return [detail for place, detail in details.items() if place not in within]


def _known_place(place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A place without the branches of a union that pydantic appends."""
    return place[:2] if len(place) > 2 and place[0] == "execution" and place[1] != "silos" else place


def _as_detail(entry: Any, union: bool, model: type[BaseModel]) -> InitErrorDetails:
    if union:
        kind = "a number not below 0" if entry["loc"][-1] == "gpus_per_actor" else "a whole number from 1"
        return problem(entry["loc"], entry["input"], f"should be auto or {kind}")
    text = entry["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if entry["type"] == "extra_forbidden":
        text = "unknown key" + nearest(str(entry["loc"][-1]), _known_keys(model, entry["loc"][:-1]))
    return problem(entry["loc"], entry["input"], text)


def _known_keys(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    for key in place:
        field = model.model_fields.get(str(key))  # None: the key of a mapping
        model = (field and _section(field.annotation)) or model
    return list(model.model_fields)


def nearest(key: str, known: Sequence[str]) -> str:
    """``; did you mean …?`` for a key near a known one, else the list of the known ones."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; known here: " + ", ".join(known)


def describe(error: ValidationError, prefix: str = "", root: str = "") -> tuple[str, ...]:
    """One line a problem: ``place: value: what would be right``; ``root`` names the whole."""
    return tuple(_line(entry, prefix, root) for entry in error.errors(include_url=False)[:LIMIT_PROBLEMS])


def _line(entry: Any, prefix: str, root: str) -> str:
    place = prefix + ".".join(map(shown_text, entry["loc"])) if entry["loc"] else prefix.rstrip(".") or root
    value, text = entry["input"], entry["msg"]
    if entry["type"] == renamed.PROBLEM:
        return f"{place} {text}"
    if isinstance(value, Mapping | BaseModel):
        return f"{place}: {text}" if place else text
    separator = " " if text.startswith(("is ", "lists ", "should ")) else ": "
    return f"{place}: {shown(value)}{separator}{text}"
