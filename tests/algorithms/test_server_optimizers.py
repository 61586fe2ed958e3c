"""Every server optimizer compared with its formula, for one federation and for several federations as rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fednar_ray.algorithms import server_optimizers as rules
from fednar_ray.algorithms.presets import build_algorithm
from fednar_ray.algorithms.server_optimizers import RoundAggregate, ServerOptimizer, ServerState
from fednar_ray.config import PRESET_SETTINGS, read_algorithm
from tests.support.drawn import draw

Steps = Iterator[tuple[np.ndarray, np.ndarray]]  # each round's iterate and eval_params, float64


@dataclass(frozen=True)
class Round:
    """The aggregate that the server receives in one round, in float64."""

    delta: np.ndarray
    squared: float  # Σ w_i·‖Δ_i‖²
    clients: int
    epsilon: float


POPULATION = 9


def iter_mean(x: np.ndarray, rounds: Sequence[Round], server_lr: float) -> Steps:
    for r in rounds:
        x = x + server_lr * r.delta
        yield x, x


def iter_momentum(x: np.ndarray, rounds: Sequence[Round], server_lr: float, beta: float) -> Steps:
    m = 0 * x
    for r in rounds:
        m = r.delta + beta * m
        x = x + server_lr * m
        yield x, x


def build_adaptive(kind: str) -> Callable[..., Steps]:
    def steps(
        x: np.ndarray, rounds: Sequence[Round], server_lr: float, beta1: float, beta2: float, epsilon: float
    ) -> Steps:
        m, v = 0 * x, 0 * x + epsilon**2
        for r in rounds:
            square = r.delta**2
            m = beta1 * m + (1 - beta1) * r.delta
            v = {
                "adam": beta2 * v + (1 - beta2) * square,
                "yogi": v - (1 - beta2) * square * np.sign(v - square),
                "adagrad": v + square,
            }[kind]
            x = x + server_lr * m / (np.sqrt(v) + r.epsilon)
            yield x, x

    return steps


def iter_adam_li2023(x: np.ndarray, rounds: Sequence[Round], server_lr: float) -> Steps:
    m, v = 0 * x, 0 * x
    for r in rounds:
        m = 0.1 * r.delta + 0.9 * m
        v = 0.99 * v + 0.01 * m**2
        x = x + server_lr * (m / 0.1) / np.sqrt(v / 0.01 + r.epsilon)
        yield x, x


def iter_extrapolated(x: np.ndarray, rounds: Sequence[Round], beta: float = 0.0) -> Steps:
    squared, m, seen = 0.0, 0 * x, []
    for r in rounds:
        squared = r.squared + 0.5 * beta * squared
        m = r.delta + beta * m
        x = x + max(1.0, 0.5 * squared / (m @ m + r.clients * r.epsilon)) * m
        seen.append(x)
        yield x, sum(seen[-2:]) / len(seen[-2:])


def iter_dynamic(x: np.ndarray, rounds: Sequence[Round], alpha: float) -> Steps:
    h = 0 * x
    for r in rounds:
        h = h - alpha / POPULATION * r.clients * r.delta
        x = x + r.delta - h / alpha
        yield x, x


def build_moment_optimizer(rule: rules.SecondMoment) -> Callable[..., ServerOptimizer]:
    return lambda **scalars: rules.adaptive(**scalars, moment=rule)


THREE_RATES = {"server_lr": [0.1, 0.3, 1.0], "beta1": [0.9, 0.5, 0.0], "beta2": [0.99, 0.9, 0.5]}
RULES: dict[str, tuple[Callable[..., ServerOptimizer], Callable[..., Steps], dict[str, list[float]]]] = {
    "mean": (rules.mean, iter_mean, {"server_lr": [1.0, 0.5, 2.0]}),
    "momentum": (rules.momentum, iter_momentum, {"server_lr": [1.0, 0.5, 2.0], "beta": [0.9, 0.5, 0.0]}),
    "adam": (
        build_moment_optimizer(rules.adam_moment),
        build_adaptive("adam"),
        {**THREE_RATES, "epsilon": [0.01, 0.1, 1e-3]},
    ),
    "yogi": (
        build_moment_optimizer(rules.yogi_moment),
        build_adaptive("yogi"),
        {**THREE_RATES, "epsilon": [0.01, 0.1, 2.0]},
    ),
    "adagrad": (
        build_moment_optimizer(rules.adagrad_moment),
        build_adaptive("adagrad"),
        {**THREE_RATES, "epsilon": [0.01, 0.1, 1e-3]},
    ),
    "adam_li2023": (rules.adam_li2023, iter_adam_li2023, {"server_lr": [0.1, 0.3, 1.0]}),
    "extrapolated": (rules.extrapolated, iter_extrapolated, {}),
    "extrapolated_momentum": (rules.extrapolated_momentum, iter_extrapolated, {"beta": [0.9, 0.5, 0.2]}),
    "dynamic": (rules.dynamic_server, iter_dynamic, {"alpha": [0.1, 0.5, 2.0]}),
}
every_rule = pytest.mark.parametrize("name", RULES)


def draw_rounds(row: int, count: int = 6, size: int = 5) -> tuple[np.ndarray, list[Round]]:
    """Returns initial parameters, and rounds with an annealed ε in which clients disagree more and more."""
    rng = np.random.default_rng([7, row])
    rounds = []
    for t in range(count):
        delta = rng.normal(size=size).astype(np.float32).astype(float)
        squared = float(delta @ delta) * (1 + 2 * t)
        rounds.append(Round(delta, squared, clients=3 + t % 2, epsilon=0.05 * 0.8**t))
    return rng.normal(size=size).astype(np.float32), rounds


def build_aggregate(r: Round) -> RoundAggregate:
    return RoundAggregate(
        delta=r.delta.astype(np.float32),
        mean_squared_norm=r.squared,
        clients=r.clients,
        population=POPULATION,
        epsilon=r.epsilon,
    )


def run(
    rule: ServerOptimizer, start: np.ndarray, aggregates: Sequence[RoundAggregate]
) -> list[tuple[ServerState, Any]]:
    state, seen = rule.init(start), []
    for agg in aggregates:
        state = rule.step(state, agg)
        seen.append((state, rule.eval_params(state)))
    return seen


@every_rule
@pytest.mark.parametrize("row", [0, 1, 2])
def test_an_optimizer_equals_its_formula(name, row):
    build, formula, scalars = RULES[name]
    chosen = {key: values[row] for key, values in scalars.items()}
    start, rounds = draw_rounds(row)
    steps = run(build(**chosen), start, [build_aggregate(r) for r in rounds])
    for (state, eval_params), (x, evaluated) in zip(steps, formula(start.astype(float), rounds, **chosen), strict=True):
        np.testing.assert_allclose(state.parameters, x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(eval_params, evaluated, rtol=1e-5, atol=1e-5)
        assert state.parameters.dtype == eval_params.dtype == np.float32


@every_rule
def test_rows_with_their_own_scalars_equal_single_federations(name):
    build, _, scalars = RULES[name]
    starts, rounds = zip(*(draw_rounds(row) for row in range(3)), strict=True)
    singles = [
        run(
            build(**{key: values[row] for key, values in scalars.items()}),
            starts[row],
            map(build_aggregate, rounds[row]),
        )
        for row in range(3)
    ]
    columns = {key: np.array(values)[:, None] for key, values in scalars.items()}
    stacked = [
        RoundAggregate(
            delta=np.stack([r.delta for r in same]).astype(np.float32),
            mean_squared_norm=np.array([[r.squared] for r in same]),
            clients=same[0].clients,
            population=POPULATION,
            epsilon=np.array([[r.epsilon] for r in same]),
        )
        for same in zip(*rounds, strict=True)
    ]
    for t, (state, eval_params) in enumerate(run(build(**columns), np.stack(starts), stacked)):
        for row in range(3):
            alone, alone_eval_params = singles[row][t]
            np.testing.assert_allclose(state.parameters[row], alone.parameters, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(eval_params[row], alone_eval_params, rtol=1e-6, atol=1e-7)
        assert state.parameters.dtype == np.float32


@every_rule
def test_a_step_changes_neither_its_state_nor_its_aggregate(name):
    build, _, scalars = RULES[name]
    rule = build(**{key: values[0] for key, values in scalars.items()})
    start, rounds = draw_rounds(0)
    state, agg = rule.init(start), build_aggregate(rounds[0])
    for vector in (start, agg.delta, *state.vectors.values()):
        vector.flags.writeable = False
    np.testing.assert_array_equal(rule.step(state, agg).parameters, rule.step(state, agg).parameters)


def run_one_round(
    rule: ServerOptimizer, delta: list[float], *, epsilon: float = 0.0, squared: float = 0.0, clients: int = 2
):
    agg = RoundAggregate(
        delta=np.array(delta, np.float32), mean_squared_norm=squared, clients=clients, population=4, epsilon=epsilon
    )
    state = rule.step(rule.init(np.array([1.0, 1.0], np.float32)), agg)
    return state, rule.eval_params(state)


@pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
def test_with_epsilon_zero_the_first_adaptive_step_is_the_sign(name):
    # adam, yogi: m = 0.1Δ and v = 0.01Δ², so m/√v = sign Δ; adagrad (β₁ = 0): m = Δ and v = Δ²
    build, _, _ = RULES[name]
    rule = build(server_lr=0.5, beta1=0.0 if name == "adagrad" else 0.9, beta2=0.99, epsilon=0.0)
    np.testing.assert_allclose(run_one_round(rule, [3.0, -0.01])[0].parameters, [1.5, 0.5], rtol=1e-5)


def test_the_authors_adam_matches_numbers_by_hand():
    # Δ = 3: m = 0.3, v = 0.01·0.09; (m/0.1)/√(v/0.01 + 0.16) = 3/√0.25 = 6.  Δ = 0 moves nothing.
    state, _ = run_one_round(rules.adam_li2023(0.5), [3.0, 0.0], epsilon=0.16)
    np.testing.assert_allclose(state.parameters, [4.0, 1.0], rtol=1e-6)


def test_momentum_matches_numbers_by_hand():
    rule, agg = rules.momentum(2.0, 0.5), build_aggregate(Round(np.ones(1), 0.0, 1, 0.0))
    xs = [float(state.parameters[0]) for state, _ in run(rule, np.zeros(1, np.float32), [agg] * 3)]
    assert xs == [2.0, 5.0, 8.5]  # m = 1, 1.5, 1.75


@pytest.mark.parametrize(
    ("squared", "epsilon", "factor"),
    [(200.0, 0.0, 4.0), (200.0, 12.5, 2.0), (40.0, 0.0, 1.0), (0.0, 0.0, 1.0)],
)
def test_extrapolation_matches_numbers_by_hand(squared, epsilon, factor):
    # Δ = [3, 4]: ½·200/(25 + 2·ε); never below 1
    for rule in (rules.extrapolated(), rules.extrapolated_momentum(0.9)):
        state, eval_params = run_one_round(rule, [3.0, 4.0], squared=squared, epsilon=epsilon)
        np.testing.assert_allclose(state.parameters, [1 + 3 * factor, 1 + 4 * factor], rtol=1e-6)
        np.testing.assert_array_equal(eval_params, state.parameters)  # in round 0 only the new iterate is evaluated
        assert np.asarray(state.server_lr).item() == pytest.approx(factor)


@pytest.mark.parametrize("rule", [rules.extrapolated(), rules.extrapolated_momentum(0.9)], ids=["plain", "momentum"])
def test_extrapolated_eval_params_are_the_mean_of_the_last_two_iterates(rule):
    start, rounds = draw_rounds(0)
    steps = run(rule, start, [build_aggregate(r) for r in rounds])
    np.testing.assert_array_equal(steps[0][1], steps[0][0].parameters)
    for (before, _), (after, eval_params) in pairwise(steps):
        np.testing.assert_allclose(eval_params, (before.parameters + after.parameters) / 2, rtol=1e-6)
        assert not np.array_equal(eval_params, after.parameters)


def test_fedexp_without_extrapolation_is_fedavg():
    start, rounds = draw_rounds(1)
    agreeing = [build_aggregate(Round(r.delta, float(r.delta @ r.delta), r.clients, r.epsilon)) for r in rounds]
    for (expected, _), (state, _) in zip(
        run(rules.mean(1.0), start, agreeing), run(rules.extrapolated(), start, agreeing), strict=True
    ):
        np.testing.assert_array_equal(state.parameters, expected.parameters)


def test_feddyn_matches_numbers_by_hand():
    # α = ½, two clients of four, mean Δ = 1: h = −½·2/4 = −¼; x = 1 + 1 + ½.  A second time: h = −½; x = 2.5 + 1 + 1
    rule, start = rules.dynamic_server(0.5), np.ones(1, np.float32)
    agg = RoundAggregate(delta=np.ones(1, np.float32), mean_squared_norm=1.0, clients=2, population=4, epsilon=0.0)
    assert [float(state.parameters[0]) for state, _ in run(rule, start, [agg, agg])] == [2.5, 4.5]


@every_rule
@draw(30)
@given(
    start=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8),
    count=st.integers(1, 3),
    epsilon=st.sampled_from([1.0, 0.01, 1e-6]),
)
def test_from_the_initial_state_a_zero_delta_leaves_the_parameters_unchanged(name, start, count, epsilon):
    build, _, scalars = RULES[name]
    x = np.array(start, np.float32)
    agg = RoundAggregate(delta=0 * x, mean_squared_norm=0.0, clients=3, population=POPULATION, epsilon=epsilon)
    for state, eval_params in run(build(**{key: values[0] for key, values in scalars.items()}), x, [agg] * count):
        np.testing.assert_array_equal(state.parameters, x)
        np.testing.assert_allclose(eval_params, x)


@pytest.mark.parametrize("name", [name for name, read in PRESET_SETTINGS.items() if "epsilon" in read])
def test_epsilon_zero_is_refused_or_leaves_a_coordinate_that_never_moves_finite(name):
    # the corner pixels of digits are always 0, so the Δ of their weights is exactly 0
    try:
        rule = build_algorithm(read_algorithm({"name": name, "epsilon": 0.0})).server
    except ValidationError:
        return
    state, _ = run_one_round(rule, [1.0, 0.0], squared=1.0)
    assert state.parameters[1] == 1.0
    assert np.isfinite(state.parameters).all()


@pytest.mark.parametrize("name", PRESET_SETTINGS)
def test_every_preset_is_built_from_its_defaults(name):
    state, eval_params = run_one_round(
        build_algorithm(read_algorithm({"name": name})).server, [1.0, -1.0], epsilon=0.01, squared=2.0
    )
    assert state.parameters[0] > 1.0 > state.parameters[1]
    assert eval_params[0] > 1.0 > eval_params[1]
