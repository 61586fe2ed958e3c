"""What is wrong with settings: each problem names the place, the value, and what would be right.

Everything that is wrong with an experiment is collected and reported at once.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, ValidationError

from fednar_ray.config import renamed
from fednar_ray.config.base import Settings
from fednar_ray.core.errors import shown, shown_text

LIMIT_PROBLEMS = 50
"""The maximum number of problems of one kind that are reported: nobody reads more, and each takes time to describe."""


def problem(place: tuple[str | int, ...], value: Any, text: str) -> InitErrorDetails:
    """One problem, as pydantic reports it."""
    return InitErrorDetails(type=PydanticCustomError("experiment", "{text}", {"text": text}), loc=place, input=value)


def as_details(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> list[InitErrorDetails]:
    """Pydantic's errors in our words, one per place. An unknown key comes with the known keys nearest to it."""
    details: dict[tuple[str | int, ...], InitErrorDetails] = {}
    for entry in errors[:LIMIT_PROBLEMS]:
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
        model = (field and find_section(field.annotation)) or model
    return list(model.model_fields)


def find_section(annotation: Any) -> type[Settings] | None:
    """The section that an annotation such as ``DataSettings | None``, or a mapping to sections, holds."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := find_section(part))), None)


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
