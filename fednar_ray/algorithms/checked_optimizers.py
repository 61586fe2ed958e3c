"""Checks the results of a user's own server optimizer, so that a mistake becomes an error that names the function."""

from collections.abc import Callable
from traceback import extract_tb
from typing import Any, TypeVar

import numpy as np

from fednar_ray.algorithms.server_optimizers import RoundAggregate, ServerOptimizer, ServerState
from fednar_ray.core.errors import ConfigError, FednarError, RunFailed, first_line
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.flat_params import FloatVector

T = TypeVar("T")
Refuse = Callable[[str], FednarError]


def add_checks(optimizer: ServerOptimizer, function: str) -> ServerOptimizer:
    """Returns a server optimizer that computes the same as ``optimizer``, and checks every result.

    Its ``init`` raises ConfigError, and its ``step`` and ``eval_params`` raise RunFailed, if the user's code fails,
    or returns vectors of another length or type, or values that are not finite.

    Args:
        optimizer: The user's server optimizer.
        function: The path of the user's function, for messages.
    """

    def refuse(text: str) -> ConfigError:
        return ConfigError((f"algorithm.function: {function}: {text}",))

    def fail(text: str) -> RunFailed:
        return RunFailed(f"algorithm.function: {function}: {text}")

    def init(parameters: FloatVector) -> ServerState:
        state = _call("init", optimizer.init, refuse, parameters)
        _check_state("init", state, parameters, refuse)
        return state

    def step(state: ServerState, aggregate: RoundAggregate) -> ServerState:
        after = _call("step", optimizer.step, fail, state, aggregate)
        _check_state("step", after, state.parameters, fail)
        return after

    def eval_params(state: ServerState) -> FloatVector:
        vector = _call("eval_params", optimizer.eval_params, fail, state)
        _check_vector("eval_params returned", vector, state.parameters, fail)
        return vector

    return ServerOptimizer(init, step, eval_params)


def _call(name: str, function: Callable[..., T], error: Refuse, *arguments: Any) -> T:
    try:
        with exits_as_errors():
            return function(*arguments)
    except Exception as raised:
        place = extract_tb(raised.__traceback__)[-1]
        where = f"{place.filename}:{place.lineno}"
        raise error(f"{name} fails at {where}: {type(raised).__name__}: {first_line(raised)}") from raised


def _check_state(name: str, state: object, parameters: FloatVector, error: Refuse) -> None:
    if not isinstance(state, ServerState):
        raise error(f"{name} returned {type(state).__name__}; a ServerState is needed")
    _check_vector(f"{name} returned parameters:", state.parameters, parameters, error)
    for key, vector in state.vectors.items():
        _check_vector(f"{name} returned vectors[{key!r}]:", vector, parameters, error)
    for key, value in state.scalars.items():
        if not isinstance(value, int | float | np.ndarray):
            raise error(f"{name} returned scalars[{key!r}]: {type(value).__name__}; a float is needed (float(value))")


def _check_vector(what: str, vector: object, parameters: FloatVector, error: Refuse) -> None:
    if not isinstance(vector, np.ndarray):
        raise error(f"{what} {type(vector).__name__}; a NumPy array is needed")
    if vector.shape != parameters.shape:
        found, wanted = (f"{v.size:,} numbers in shape {list(v.shape)}" for v in (vector, parameters))
        raise error(f"{what} {found}; the model has {wanted}")
    if vector.dtype != np.float32:
        raise error(f"{what} {vector.dtype} numbers; float32 is needed (.astype(np.float32))")
    if not np.isfinite(vector).all():
        bad = np.flatnonzero(~np.isfinite(vector))
        raise error(f"{what} {len(bad):,} of {vector.size:,} numbers are NaN or infinite, the first at index {bad[0]}")
