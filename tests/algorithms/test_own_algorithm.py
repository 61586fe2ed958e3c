"""Custom algorithms, given by the path of a function. In every other respect they behave like presets."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fednar_ray as fr
from fednar_ray.core.errors import RunFailed
from tests.conftest import build_small_federation
from tests.support.stores import create_store

RULES = """
import numpy as np

from fednar_ray.algorithms.client_corrections import ClientCorrection, SharedVector, proximal
from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.server_optimizers import ServerOptimizer, ServerState, mean


def fedprox(mu):
    return Algorithm(proximal(mu), mean(1.0))


def half_a_step_and_a_memory(beta=0.5):
    def init(start):
        return ServerState(parameters=start, vectors={"m": np.zeros_like(start)})

    def step(state, aggregate):
        m = aggregate.delta + np.float32(beta) * state.vectors["m"]
        moved = state.parameters + np.float32(0.5) * m
        return ServerState(parameters=moved, vectors={"m": m}, server_lr=0.5)

    pull = ClientCorrection(lambda r: lambda grad, params: grad + 0.1 * (params - r.global_params))
    return Algorithm(pull, ServerOptimizer(init, step, lambda state: state.parameters))


def drift(name="drift"):
    # the mean update of all clients so far, which every client gets with the parameters
    shared = SharedVector(
        init=np.zeros_like,
        change=lambda r, states: states - r.state,
        update=lambda vector, change, examples: vector + change / np.float32(examples),
    )
    correction = ClientCorrection(
        lambda r: lambda grad, params: grad - r.shared[name], lambda r, delta, steps: delta, {name: shared}
    )
    return Algorithm(correction, mean(1.0))


def number():
    return 3
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Returns the name of an importable module with server optimizers."""
    (tmp_path / "rules_of_a_user.py").write_text(RULES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "rules_of_a_user"
    sys.modules.pop("rules_of_a_user", None)


def build_experiment(algorithm: dict[str, Any], **sections: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "data": {"source": "digits", "partition": {"clients": 6}},
            "model": {"name": "logistic"},
            "federation": {"rounds": 3, "local_steps": 2, "clients_per_round": 3},
            "algorithm": algorithm,
            "execution": {"placement": "serial"},
            **sections,
        }
    )


def build_parameters(one: fr.Experiment, **given: Any) -> np.ndarray:
    return list(fr.iter_rounds(one, **given))[-1].parameters


def test_a_reimplemented_preset_equals_the_preset(rules: str) -> None:
    own = {"function": f"{rules}.fedprox", "arguments": {"mu": 0.3}, "local_lr": 0.2}
    preset = {"name": "fedprox", "mu": 0.3, "local_lr": 0.2}
    np.testing.assert_array_equal(build_parameters(build_experiment(own)), build_parameters(build_experiment(preset)))


@pytest.mark.usefixtures("long_computation")
def test_its_state_is_saved_in_checkpoints(rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = build_experiment(
        {"function": f"{rules}.half_a_step_and_a_memory"}, tracking={"uri": create_store(tmp_path / "m.db")}
    )
    fr.run(one.model_copy(update={"federation": one.federation.model_copy(update={"rounds": 2})}))
    resumed = fr.run(one, resume_newest=True)
    assert resumed.resumed_from_round == 2
    np.testing.assert_array_equal(resumed.parameters, build_parameters(one))


@pytest.mark.usefixtures("long_computation")
def test_a_shared_vector_is_broadcast_and_saved_in_checkpoints(
    rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = build_experiment({"function": f"{rules}.drift"}, tracking={"uri": create_store(tmp_path / "m.db")})
    reports = list(fr.iter_rounds(one))
    plain = list(fr.iter_rounds(build_experiment({"name": "fedavg"})))
    assert reports[0].parameters.tobytes() == plain[0].parameters.tobytes()  # the shared vector starts at zero
    assert reports[1].parameters.tobytes() != plain[1].parameters.tobytes()
    assert reports[0].metrics["bytes_down"] == 2 * plain[0].metrics["bytes_down"]
    fr.run(one.model_copy(update={"federation": one.federation.model_copy(update={"rounds": 2})}))
    resumed = fr.run(one, resume_newest=True)
    assert resumed.resumed_from_round == 2
    assert resumed.parameters.tobytes() == reports[-1].parameters.tobytes()


@pytest.mark.parametrize("name", ["parameters", "buffers", "server.m", ""])
def test_a_shared_vector_with_a_name_that_checkpoints_use_is_refused(rules: str, name: str) -> None:
    with pytest.raises(fr.ConfigError, match=f"shared vector '{name}': choose another name"):
        build_parameters(build_experiment({"function": f"{rules}.drift", "arguments": {"name": name}}))


def test_training_on_ray_gives_the_same_bytes(rules: str, session: fr.RaySession) -> None:
    """The actors cannot import the module, so the algorithm itself is sent to them."""
    algorithm = {"function": f"{rules}.half_a_step_and_a_memory", "arguments": {"beta": 0.2}}
    pooled = build_experiment(
        algorithm, execution={"placement": "pooled", "actors": 2, "gpus_per_actor": 0, "vectorize": 2}
    )
    serial = build_experiment(algorithm, execution={"placement": "serial", "vectorize": 2})
    np.testing.assert_array_equal(build_parameters(pooled, session=session), build_parameters(serial))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("fedprocks", {}, "cannot be imported: module 'rules_of_a_user' has no attribute 'fedprocks'"),
        ("fedprox", {}, r"fails when called with \(\): .*missing 1 required positional argument: 'mu'"),
        ("number", {}, "returns int; a fednar_ray.algorithms.presets.Algorithm is needed"),
    ],
)
def test_an_invalid_algorithm_is_refused_before_anything_starts(
    rules: str, function: str, arguments: dict[str, Any], message: str
) -> None:
    given = build_experiment({"function": f"{rules}.{function}", "arguments": arguments})
    with pytest.raises(fr.ConfigError, match=rf"^algorithm.function: {rules}.{function}: {message}"):
        next(fr.iter_rounds(given, federation=build_small_federation((4, 4, 4))))


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"name": "fedavg", "function": "a.b"}, r"set only one of name \('fedavg'\) and function \('a.b'\)"),
        ({"name": "fedavg", "arguments": {"mu": 1}}, "fedavg does not read arguments: it belongs to function"),
        ({"function": "a.b", "mu": 0.1}, "function does not read mu: it belongs to fedprox, fedprox"),
        ({"function": "no path"}, "pattern"),
    ],
)
def test_contradictory_settings_are_refused(algorithm: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_experiment(algorithm)


def test_an_annealed_epsilon_reaches_the_server_optimizer() -> None:
    given = build_experiment({"function": "a.b", "epsilon": 0.5, "epsilon_anneal": 0.1})
    assert given.compute_scalars(1).epsilon == pytest.approx(0.05)


# ——— invalid server optimizers ———

WRONG = """
import sys
from dataclasses import replace

import numpy as np

from fednar_ray.algorithms.client_corrections import plain
from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.server_optimizers import ServerOptimizer, ServerState, mean


def changed(step=None, init=None, eval_params=None):
    rule = mean(1.0)
    return Algorithm(plain(), ServerOptimizer(init or rule.init, step or rule.step, eval_params or rule.eval_params))


def after(change):
    rule = mean(1.0)
    return changed(step=lambda state, aggregate: change(rule.step(state, aggregate)))


def of_parameters(change):
    return after(lambda state: replace(state, parameters=change(state.parameters)))


def shorter():
    return of_parameters(lambda x: x[:-2])


def column():
    return of_parameters(lambda x: x[:, None])


def wide():
    return of_parameters(lambda x: x.astype(np.float64))


def infinite():
    return of_parameters(lambda x: np.where(np.arange(len(x)) == 3, np.float32(np.inf), x))


def a_list():
    return of_parameters(list)


def memory():
    return after(lambda state: replace(state, vectors={"m": state.parameters[:5]}))


def scalar():
    return after(lambda state: replace(state, scalars={"r": np.float32(1)}))


def vector():
    return changed(step=lambda state, aggregate: state.parameters)


def starts_short():
    return changed(init=lambda x: ServerState(parameters=x[1:]))


def start_fails():
    return changed(init=lambda x: x.nothing)


def reads_short():
    return changed(eval_params=lambda state: state.parameters[:1])


def fails():
    def step(state, aggregate):
        return state.parameters + aggregate.delta[:7]

    return changed(step=step)


def exits():
    return changed(step=lambda state, aggregate: sys.exit(7))


def locked():
    import threading

    from fednar_ray.algorithms.client_corrections import ClientCorrection

    lock = threading.Lock()

    def correction(round_):
        with lock:
            return lambda grad, params: grad

    return Algorithm(ClientCorrection(correction), mean(1.0))
"""


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "wrong_rules_of_a_user.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    yield "wrong_rules_of_a_user"
    sys.modules.pop("wrong_rules_of_a_user", None)


D = 2 * 3 + 3  # number of parameters of the logistic model


def train_first_round(function: str, **execution: Any) -> None:
    given = build_experiment({"function": function}, execution={"placement": "serial", **execution})
    next(fr.iter_rounds(given, federation=build_small_federation((4, 4, 4))))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("shorter", rf"step returned parameters: {D - 2} numbers in shape \[{D - 2}\]; the model has {D} numbers"),
        ("column", rf"step returned parameters: {D} numbers in shape \[{D}, 1\]; the model has {D} numbers in shape"),
        ("wide", "step returned parameters: float64 numbers; float32 is needed"),
        ("infinite", f"step returned parameters: 1 of {D} numbers are NaN or infinite, the first at index 3"),
        ("a_list", "step returned parameters: list; a NumPy array is needed"),
        ("memory", rf"step returned vectors\['m'\]: 5 numbers in shape \[5\]; the model has {D}"),
        ("scalar", r"step returned scalars\['r'\]: float32; a float is needed"),
        ("vector", "step returned ndarray; a ServerState is needed"),
        ("reads_short", rf"eval_params returned 1 numbers in shape \[1\]; the model has {D} numbers"),
        ("fails", r"step fails at .*wrong_rules_of_a_user.py:\d+: ValueError: operands could not be broadcast"),
        ("exits", r"step fails at .*: UserCodeExited: the code raised SystemExit\(7\)"),
    ],
)
def test_an_invalid_step_ends_round_0_and_the_error_names_the_function(wrong: str, function: str, message: str) -> None:
    with pytest.raises(RunFailed, match=rf"^algorithm.function: {wrong}.{function}: {message}"):
        train_first_round(f"{wrong}.{function}")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("starts_short", rf"init returned parameters: {D - 1} numbers in shape \[{D - 1}\]; the model has {D} numbers"),
        ("start_fails", "init fails at .*: AttributeError: 'numpy.ndarray' object has no attribute 'nothing'"),
        ("locked", "its client correction cannot be sent to Ray's actors: cannot pickle '_thread.lock' object"),
    ],
)
def test_an_invalid_function_is_refused_before_ray_starts(wrong: str, function: str, message: str) -> None:
    import ray

    started = ray.is_initialized()
    with pytest.raises(fr.ConfigError, match=rf"^algorithm.function: {wrong}.{function}: {message}"):
        train_first_round(f"{wrong}.{function}", placement="pooled")
    assert ray.is_initialized() == started
