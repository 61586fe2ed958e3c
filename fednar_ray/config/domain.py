"""The values of a searched key: a range to draw from, or a list."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_serializer, model_validator

from fednar_ray.config import problems
from fednar_ray.config.base import Settings

DomainKind = Literal["uniform", "loguniform", "quniform", "randint", "choice", "grid"]
RANGES: Mapping[str, str] = {
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "quniform": "[low, high, step]",
    "randint": "[low, high), whole numbers",
}
LISTS = ("choice", "grid")


class Domain(Settings):
    """The values of one searched key. In a file it is a mapping with one entry, ``{loguniform: [0.1, 30.0]}``."""

    kind: DomainKind
    values: tuple[Any, ...]

    @model_validator(mode="before")
    @classmethod
    def _read_entry(cls, given: Any) -> Any:
        if isinstance(given, Domain) or (isinstance(given, dict) and set(given) == {"kind", "values"}):
            return given
        known = ", ".join((*RANGES, *LISTS))
        if not isinstance(given, dict) or len(given) != 1:
            raise ValueError(f"should be one of {known} with its values, such as {{loguniform: [0.1, 30.0]}}")
        ((kind, values),) = given.items()
        if kind not in (*RANGES, *LISTS):
            raise ValueError(f"unknown domain{problems.suggest(str(kind), (*RANGES, *LISTS))}")
        if not isinstance(values, list | tuple):
            raise ValueError(f"{kind} takes a list: {RANGES.get(kind, '[value, value, …]')}")
        return {"kind": kind, "values": tuple(values)}

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.kind in LISTS:
            if not self.values:
                raise ValueError(f"{self.kind} is empty: list at least one value")
            if len({repr(value) for value in self.values}) < len(self.values):
                raise ValueError(f"{self.kind} lists a value twice")
            return self
        wanted = f"{self.kind} takes {RANGES[self.kind]}"
        if len(self.values) != (3 if self.kind == "quniform" else 2) or not all(map(_is_number, self.values)):
            raise ValueError(wanted)
        low, high = self.values[:2]
        if low >= high:
            raise ValueError(
                f"the range from {low:g} to {high:g} is {'empty' if low == high else 'inverted'}; {wanted}"
            )
        if self.kind == "loguniform" and low <= 0:
            raise ValueError(wanted)
        if self.kind == "randint" and not all(isinstance(value, int) for value in self.values):
            raise ValueError(wanted)
        if self.kind == "quniform" and not 0 < self.values[2] <= high - low:
            raise ValueError(f"the step {self.values[2]:g} is not within the range from {low:g} to {high:g}")
        return self

    @model_serializer
    def _serialize(self) -> dict[str, list[Any]]:
        return {self.kind: list(self.values)}

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values to validate: if they are valid, so are all. All values of a list, and both ends of a range."""
        if self.kind in LISTS:
            return self.values
        low, high = self.values[:2]
        return low, high - 1 if self.kind == "randint" else high


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
