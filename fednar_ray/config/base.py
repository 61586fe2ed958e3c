"""The base of every section, and the types of values that sections share."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def check_number(value: Any) -> Any:
    """Refuses true and false, which Python counts as numbers."""
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def read_switch(value: Any) -> Any:
    """Reads what YAML makes of a bare ``on`` or ``off``, for settings that are ``auto`` or ``off``."""
    return {True: "auto", False: "off"}[value] if isinstance(value, bool) else value


def _check_argument(value: Any) -> Any:
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, bool | int | float | str) for part in parts):
        raise ValueError("should be a number, text, true, false, or a list of these")
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, BeforeValidator(check_number), Field(ge=1, le=2**31 - 1)]
Size = Annotated[int, BeforeValidator(check_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(check_number), Field(gt=0)]
NonNegative = Annotated[float, BeforeValidator(check_number), Field(ge=0)]
Rate = Annotated[float, BeforeValidator(check_number), Field(gt=0, le=1)]
Share = Annotated[float, BeforeValidator(check_number), Field(ge=0, lt=1)]
FunctionPath = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*$")]
"""``package.module:function`` or ``package.module.function``."""
Argument = Annotated[Any, BeforeValidator(_check_argument)]


@dataclass(frozen=True)
class Example:
    """An example of a setting, for its description.

    Attributes:
        value: A value other than the default.
        needs: Other settings without which the value is refused or has no effect, as ``key=value``. Required settings
            of the same section are added by themselves.
    """

    value: Any
    needs: tuple[str, ...]

    def __init__(self, value: Any, *needs: str) -> None:
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "needs", needs)


class Settings(BaseModel):
    """The base of every section: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
