"""What a function of the user's returns, by the function's path."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fednar_ray.core.errors import BadInput, shown
from fednar_ray.core.exits import exits_as_errors

T = TypeVar("T")
Refusal = Callable[[str], BadInput]


def called_by_path(
    place: str, path: str, arguments: Mapping[str, Any], wanted: type[T], kind: str, refuse: Refusal
) -> T:
    """What ``package.module.function`` returns, called with ``arguments``; ``place`` is the key that names it.

    Raises what ``refuse`` makes of a text where it cannot be imported, fails, or returns no ``wanted``, a ``kind``.
    """
    module_name, _, name = path.rpartition(".")
    place = f"{place}: {path}"
    try:
        with exits_as_errors():
            function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise refuse(f"{place}: cannot be imported: {error}") from error
    return called(place, function, arguments, wanted, kind, refuse)


def called(
    place: str, function: Callable[..., Any], arguments: Mapping[str, Any], wanted: type[T], kind: str, refuse: Refusal
) -> T:
    """What a function returns. Raises as ``called_by_path``."""
    given = ", ".join(f"{key}={shown(value)}" for key, value in arguments.items())
    try:
        with exits_as_errors():
            made = function(**arguments)
    except Exception as error:
        raise refuse(f"{place}: fails when called with ({given}): {error}") from error
    if not isinstance(made, wanted):
        raise refuse(f"{place}: gives {type(made).__name__}; {kind} is needed")
    return made
