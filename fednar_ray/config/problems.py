"""Describes what is wrong with settings: the place, the value, and what would be right.

Everything that is wrong with an experiment is collected and reported at once.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, ValidationError

from fednar_ray.config import renamed
from fednar_ray.config.base import Settings
from fednar_ray.core.errors import format_text, format_value

LIMIT_PROBLEMS = 50
"""The maximum number of problems of one kind that are reported: nobody reads more, and each takes time to describe."""


def build_problem(place: tuple[str | int, ...], value: Any, text: str) -> InitErrorDetails:
    """Builds a problem in the form of pydantic's errors.

    Args:
        place: The keys that lead to the value.
        value: What the settings have there.
        text: What would be right.
    """
    return InitErrorDetails(type=PydanticCustomError("experiment", "{text}", {"text": text}), loc=place, input=value)


def convert_errors(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> list[InitErrorDetails]:
    """Rewords pydantic's errors, one per place. Those of unknown keys suggest a known key."""
    details: dict[tuple[str | int, ...], InitErrorDetails] = {}
    for entry in errors[:LIMIT_PROBLEMS]:
        place = _strip_union_branch(entry["loc"], model)
        if place != entry["loc"] or place not in details:
            details.setdefault(place, _convert_error({**entry, "loc": place}, entry["loc"] != place, model))
    within = {place[:-1] for place in details if place and isinstance(place[-1], int)}
    return [detail for place, detail in details.items() if place not in within]


def _strip_union_branch(place: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str | int, ...]:
    """Returns a place without the branch of a union, which pydantic appends."""
    field = model.model_fields.get(str(place[0])) if len(place) == 2 else None
    if field is not None and _takes_auto(field.annotation):
        return place[:1]
    return place[:2] if len(place) > 2 and place[0] == "execution" and place[1] != "silos" else place


def _takes_auto(annotation: Any) -> bool:
    """Returns whether a key takes ``auto`` or a number."""
    return any(get_origin(part) is Literal and "auto" in get_args(part) for part in get_args(annotation))


def _convert_error(entry: Any, union: bool, model: type[BaseModel]) -> InitErrorDetails:
    if union:
        kind = "a number not below 0" if entry["loc"][-1] == "gpus_per_actor" else "a whole number from 1"
        words = "auto, off" if entry["loc"][-1] == "pack" else "auto"
        return build_problem(entry["loc"], entry["input"], f"should be {words} or {kind}")
    text = entry["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if entry["type"] == "extra_forbidden":
        text = "unknown key" + suggest(str(entry["loc"][-1]), _list_known_keys(model, entry["loc"][:-1]))
    return build_problem(entry["loc"], entry["input"], text)


def _list_known_keys(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    for key in place:
        field = model.model_fields.get(str(key))  # None: the key of a mapping
        model = (field and find_section(field.annotation)) or model
    return list(model.model_fields)


def find_section(annotation: Any) -> type[Settings] | None:
    """Finds the section class within an annotation such as ``DataSettings | None``, or a mapping to sections."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := find_section(part))), None)


def suggest(key: str, known: Sequence[str]) -> str:
    """Returns ``; did you mean …?`` if a known key is similar, otherwise ``; known here: …`` with all of them."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; known here: " + ", ".join(known)


def describe(error: ValidationError, prefix: str = "", root: str = "") -> tuple[str, ...]:
    """Describes each problem in one line, ``place: value: what would be right``.

    Args:
        error: pydantic's error.
        prefix: What every place starts with.
        root: The place of a problem with the whole.
    """
    return tuple(_format_line(entry, prefix, root) for entry in error.errors(include_url=False)[:LIMIT_PROBLEMS])


def describe_section(error: ValidationError, model: type[Settings], prefix: str) -> tuple[str, ...]:
    """Describes each problem of a section that is validated by itself, in one line.

    Args:
        error: pydantic's error.
        model: The settings of the section.
        prefix: What every place starts with, such as ``compare.``.
    """
    details = convert_errors(error.errors(include_url=False), model)
    return describe(ValidationError.from_exception_data(model.__name__, details), prefix)


def _format_line(entry: Any, prefix: str, root: str) -> str:
    place = prefix + ".".join(map(format_text, entry["loc"])) if entry["loc"] else prefix.rstrip(".") or root
    value, text = entry["input"], entry["msg"]
    if entry["type"] == renamed.PROBLEM:
        return f"{place} {text}"
    if isinstance(value, Mapping | BaseModel):
        return f"{place}: {text}" if place else text
    separator = " " if text.startswith(("is ", "lists ", "should ")) else ": "
    return f"{place}: {format_value(value)}{separator}{text}"
