"""Loads and calls the functions that an experiment names by their path: data sources, models, algorithms."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fednar_ray.core.errors import BadInput, format_value
from fednar_ray.core.exits import exits_as_errors

T = TypeVar("T")
MakeError = Callable[[str], BadInput]


def import_function(path: str) -> Any:
    """Returns what ``package.module.name`` or ``package.module:name`` names.

    Raises:
        Exception: Whatever importing the module raises; AttributeError if it has no such name.
    """
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    return getattr(importlib.import_module(module_name), name)


def import_callable(path: str) -> Callable[..., Any]:
    """Returns the function that a path names.

    Raises:
        ImportError: The module cannot be imported, or has no such function. The message says why.
    """
    try:
        with exits_as_errors():
            function = import_function(path)
    except Exception as error:
        raise ImportError(f"cannot be imported: {error}") from error
    if not callable(function):
        raise ImportError(f"is {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found


def call_by_path(
    key: str, path: str, arguments: Mapping[str, Any], wanted: type[T], wanted_name: str, make_error: MakeError
) -> T:
    """Imports a function and returns its result.

    Args:
        key: The key of the experiment that names the function, for messages.
        path: ``package.module.name`` or ``package.module:name``.
        arguments: Keyword arguments of the call.
        wanted: The type that the function must return.
        wanted_name: How messages name this type, with its article.
        make_error: Makes the error to raise from its message.

    Raises:
        BadInput: What ``make_error`` returns, if the function cannot be imported, fails, or returns something else.
    """
    key = f"{key}: {path}"
    try:
        with exits_as_errors():
            function = import_function(path)
    except Exception as error:
        raise make_error(f"{key}: cannot be imported: {error}") from error
    return call_and_check(key, function, arguments, wanted, wanted_name, make_error)


def call_and_check(
    key: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    wanted: type[T],
    wanted_name: str,
    make_error: MakeError,
) -> T:
    """Calls a function and returns its result, which must be a ``wanted``. Raises as ``call_by_path`` does."""
    given = ", ".join(f"{name}={format_value(value)}" for name, value in arguments.items())
    try:
        with exits_as_errors():
            result = function(**arguments)
    except Exception as error:
        text = f"{key}: fails when called with ({given}): {type(error).__name__}: {error}"
        raise make_error(text) from error
    if not isinstance(result, wanted):
        raise make_error(f"{key}: returns {type(result).__name__}; {wanted_name} is needed")
    return result
