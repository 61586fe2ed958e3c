# ruff: noqa: S311 - the tests draw from Python's generators
"""Models with Python state and randomness train as in a plain loop over clients on every placement, or are refused."""

import copy
import itertools
import logging
import os
import random
import sys
import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fednar_ray as fr
from fednar_ray.core.errors import InconsistentModel, ModelError
from fednar_ray.core.module_state import GivenState, copy_model
from fednar_ray.core.random import Purpose, generator, seed_sequence
from fednar_ray.data.batches import plan_client_batches
from fednar_ray.data.examples import Examples
from fednar_ray.federated.model_traits import probe
from tests.conftest import build_small_federation
from tests.support.stores import create_store

SIZES, STEPS, BATCH, RATE = (7, 12, 3, 9), 6, 4, 0.1
EXAMPLES = Examples(np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32), np.arange(9) % 3)
ADDRESS = seed_sequence(0, Purpose.LAYERS)


class Net(nn.Module):
    """Two layers; the subclass decides when the second one takes part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(2, 3), nn.Linear(2, 3)

    def takes_part(self) -> bool:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.first(x) + self.second(x)
        return self.first(x) + self.second(x) if self.takes_part() else self.first(x)


class Counter(Net):
    calls = 0

    def takes_part(self) -> bool:
        self.calls += 1
        return self.calls > 4


class InList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def takes_part(self) -> bool:
        self.seen.append(1)
        return len(self.seen) > 4


class InNestedDict(Net):
    def __init__(self) -> None:
        super().__init__()
        self.schedule = {"warm up": {"left": [4]}}

    def takes_part(self) -> bool:
        left = self.schedule["warm up"]["left"]
        left[0] -= 1
        return left[0] < 0


class InSubmodule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Counter()

    def takes_part(self) -> bool:
        return self.clock.takes_part()


class InTensor(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(())

    def takes_part(self) -> bool:
        self.calls += 1
        return bool(self.calls > 4)


class InArray(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls = np.zeros(1)

    def takes_part(self) -> bool:
        self.calls += 1
        return bool(self.calls[0] > 4)


class InIterator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls = itertools.count(1)

    def takes_part(self) -> bool:
        return next(self.calls) > 4


class Schedule:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0

    def step(self) -> int:
        self.calls += 1
        return self.calls


class InObject(Net):
    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()

    def takes_part(self) -> bool:
        return self.schedule.step() > 4


class InBoundMethod(Net):
    def __init__(self) -> None:
        super().__init__()
        self.step = Schedule().step

    def takes_part(self) -> bool:
        return self.step() > 4


class InHook(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(CountingHook())

    def takes_part(self) -> bool:
        (hook,) = self._forward_pre_hooks.values()
        return hook.calls > 4


class CountingHook:
    calls = 0

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self.calls += module.training


class NewAttribute(Net):
    def takes_part(self) -> bool:
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls > 4


COUNTERS = {  # what changes, by name
    Counter: "the model (Counter) changes its attribute 'calls' in forward",
    InList: "the model (InList) changes its attribute 'seen' in forward",
    InNestedDict: "the model (InNestedDict) changes its attribute 'schedule' in forward",
    InSubmodule: "module 'clock' (Counter) changes its attribute 'calls' in forward",
    InTensor: "the model (InTensor) changes its attribute 'calls' in forward",
    InArray: "the model (InArray) changes its attribute 'calls' in forward",
    InIterator: "the model (InIterator) changes its attribute 'calls' in forward",
    InObject: "the model (InObject) changes its attribute 'schedule' in forward",
    InBoundMethod: "the model (InBoundMethod) changes its attribute 'step' in forward",
    InHook: "the model (InHook) changes its attribute '_forward_pre_hooks' in forward",
    NewAttribute: "the model (NewAttribute) changes its attribute 'calls' in forward",
}


class PythonDrop(Net):
    def takes_part(self) -> bool:
        return random.random() < 0.5


class NumPyDrop(Net):
    def takes_part(self) -> bool:
        return bool(np.random.rand() < 0.5)


class HiddenState(nn.Module):
    """Each batch leaves a hidden state that takes part in the next one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.state = nn.Linear(2, 3), torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layer(x + self.state)
        self.state = 0.5 * self.state + x.detach().mean(dim=0)
        return outputs


def build_experiment(width: int | str = "auto", rounds: int = 2, **execution: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": rounds, "local_steps": STEPS, "batch_size": BATCH},
            "algorithm": {"local_lr": RATE},
            "regularizer": {"name": "none"},
            "execution": {"placement": "serial", "vectorize": width, **execution},
        }
    )


def train_to_end(
    model: nn.Module, width: int | str = "auto", session: fr.RaySession | None = None, **settings: Any
) -> Any:
    federation = build_small_federation(SIZES)
    *_, last = fr.iter_rounds(build_experiment(width, **settings), federation=federation, model=model, session=session)
    return last


def train_alone(model: nn.Module, x: Tensor, y: Tensor, batches: np.ndarray) -> Tensor:
    """Trains one client by plain SGD on a new copy of the model."""
    local = copy.deepcopy(model).train()
    for rows in batches:
        rows = rows[rows >= 0]
        loss = cross_entropy(local(x[rows]), y[rows])
        grads = torch.autograd.grad(loss, list(local.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, grad in zip(local.parameters(), grads, strict=True):
                parameter -= RATE * (torch.zeros_like(parameter) if grad is None else grad)
    return nn.utils.parameters_to_vector(local.parameters()).detach()


def train_by_hand(
    model: nn.Module, rounds: int, before_client: Callable[[int, int], None] = lambda *_: None
) -> np.ndarray:
    """Runs FedAvg as a loop over clients, each of which starts with the given module."""
    federation, server = build_small_federation(SIZES), copy.deepcopy(model)
    for index in range(rounds):
        ends = []
        for client_id, size in enumerate(SIZES):
            shard = federation.shards.only(client_id).examples
            rng = generator(0, Purpose.BATCHES, round_index=index, client_id=client_id)
            before_client(index, client_id)
            x, y = torch.tensor(shard.x), torch.tensor(shard.y)
            ends.append(train_alone(server, x, y, plan_client_batches(size, BATCH, STEPS, rng)))
        mean = np.average(np.stack([end.numpy() for end in ends]), axis=0, weights=SIZES)
        nn.utils.vector_to_parameters(torch.tensor(mean, dtype=torch.float32), server.parameters())
    return nn.utils.parameters_to_vector(server.parameters()).detach().numpy()


@pytest.mark.parametrize("kind", [*COUNTERS, HiddenState], ids=lambda kind: kind.__name__)
def test_every_client_starts_every_round_with_the_given_attributes(kind: type[nn.Module]) -> None:
    model = kind()
    wanted, before = train_by_hand(model, rounds=2), GivenState(model)
    np.testing.assert_allclose(train_to_end(model).parameters, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(train_to_end(model, width=1).parameters, wanted, rtol=1e-4, atol=1e-6)
    assert before.find_change() is None  # the caller's module is unchanged


@pytest.mark.parametrize("kind", COUNTERS, ids=lambda kind: kind.__name__)
def test_the_warning_names_module_and_attribute(kind: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train_to_end(kind(), rounds=1)
    (warning,) = (r.message for r in caplog.records if "one by one" in r.message)
    assert COUNTERS[kind] in warning


@pytest.mark.parametrize(
    ("kind", "library"), [(PythonDrop, "Python's random"), (NumPyDrop, "numpy.random")], ids=["random", "numpy"]
)
def test_draws_of_python_and_numpy_depend_on_seed_round_and_client(
    kind: type[nn.Module], library: str, caplog: pytest.LogCaptureFixture
) -> None:
    states: list[Any] = []

    def seeded(index: int, client_id: int) -> None:
        words = seed_sequence(0, Purpose.LAYERS, round_index=index, client_id=client_id).generate_state(4)
        random.seed(int.from_bytes(words.tobytes(), "little"))
        np.random.seed(words)
        states.append(words.tobytes())

    wanted = train_by_hand(kind(), 2, seeded)
    assert len(set(states)) == 2 * len(SIZES)
    ends = []
    for seed in (1, 2):  # the process's generators do not matter, and are restored afterwards
        random.seed(seed)
        np.random.seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist()
        with caplog.at_level(logging.WARNING):
            ends.append(train_to_end(kind()).parameters)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    np.testing.assert_allclose(ends[0], wanted, rtol=1e-4, atol=1e-6)
    assert ends[0].tobytes() == ends[1].tobytes()
    assert any(f"forward draws from {library}" in r.message for r in caplog.records)


class EveryKindOfState(Net):
    """A model with a counter in a list, a hidden state, and draws from three kinds of generators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.state, self.own = [], torch.zeros(3), np.random.default_rng()

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.first(x) + self.state
        if not self.training:
            return outputs
        self.seen.append(len(x))
        self.state = 0.5 * self.state + outputs.detach().mean(dim=0)
        drawn = random.random() + np.random.rand() + self.own.random()
        return outputs + self.second(x) if len(self.seen) > 2 and drawn < 1.5 else outputs


def test_every_placement_gives_the_same_bytes(session: fr.RaySession) -> None:
    small = {"gpus_per_actor": 0, "cpus_per_actor": 0.5}
    serial = train_to_end(EveryKindOfState())
    pooled = [{"placement": "pooled", "actors": actors} for actors in (1, 2, 3)]
    for placed in (*pooled, {"placement": "dedicated"}):
        there = train_to_end(EveryKindOfState(), session=session, **small, **placed)
        assert there.parameters.tobytes() == serial.parameters.tobytes()
        for name in ("test_loss", "test_accuracy", "train_loss"):
            assert there.metrics[name] == serial.metrics[name]


# ——— generators in attributes ———


class OwnGenerator(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        kinds: dict[str, Callable[[], Any]] = {
            "Generator": lambda: np.random.default_rng(5),
            "RandomState": lambda: np.random.RandomState(5),
            "Random": lambda: random.Random(5),
            "torch": torch.Generator,
            "unseeded": np.random.default_rng,
        }
        self.kind, self.draw = kind, {"generators": [kinds[kind]()]}

    def takes_part(self) -> bool:
        (own,) = self.draw["generators"]
        return float(torch.rand((), generator=own) if self.kind == "torch" else own.random()) < 0.5


@pytest.mark.parametrize("kind", ["Generator", "RandomState", "Random", "torch", "unseeded"])
def test_a_generator_in_an_attribute_is_reseeded_for_each_round_and_client(kind: str) -> None:
    model = OwnGenerator(kind)
    given, drawn = GivenState(model), []
    for index, client_id in itertools.product(range(2), range(3)):
        given.restore(seed_sequence(0, Purpose.LAYERS, round_index=index, client_id=client_id))
        drawn.append(tuple(model.takes_part() for _ in range(40)))
    assert len(set(drawn)) == 6
    given.restore(seed_sequence(0, Purpose.LAYERS))
    assert tuple(model.takes_part() for _ in range(40)) == drawn[0]
    assert train_to_end(model).parameters.tobytes() == train_to_end(OwnGenerator(kind)).parameters.tobytes()


# ——— evaluation ———


class StatefulEvaluation(nn.Module):
    """Shifts every forward pass in evaluation by the number of earlier ones and by a random draw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.calls = nn.Linear(2, 3), [0]
        self.register_buffer("scored", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.layer(x)
        self.calls[0] += 1
        self.scored += 1
        noise = random.random() + np.random.rand() + torch.rand(3)
        return self.layer(x) + noise * torch.arange(3) + self.calls[0] * self.scored * torch.tensor([1.0, 0.0, 0.0])


def test_no_score_depends_on_earlier_scores(session: fr.RaySession) -> None:
    rng = np.random.default_rng(0)

    def points(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(count, 2)).astype(np.float32), rng.integers(3, size=count)

    federation = fr.Federation([points(size) for size in SIZES], test=points(5000), validation=points(700))
    model, wanted = StatefulEvaluation(), None
    for placed in ({"placement": "serial"}, {"placement": "pooled", "actors": 1}, {"placement": "pooled", "actors": 2}):
        small = {} if placed["placement"] == "serial" else {"gpus_per_actor": 0, "cpus_per_actor": 0.5}
        settings = build_experiment(1, **placed, **small)
        reports = list(fr.iter_rounds(settings, federation=federation, model=model, session=session))
        scores = [
            {name: r.metrics[name] for name in ("test_loss", "test_accuracy", "validation_loss")} for r in reports
        ]
        assert wanted is None or scores == wanted
        wanted = scores


# ——— models that cannot train correctly are refused by name ———


class Frozen(Net):
    """A teacher that follows the student, stored as a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.first(x)
        self.teacher.data.mul_(0.9).add_(outputs.detach().mean(dim=0))
        return outputs + self.teacher


class LateBuffer(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(2))
        return self.first(x * self.mask)


class FreshGenerator(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + torch.from_numpy(np.random.default_rng().normal(size=3)).float()


class WithLock(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second.lock = threading.Lock()


class WithFile(Net):
    def __init__(self) -> None:
        super().__init__()
        self.log = sys.__stderr__


class WithPythonGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.schedule: Iterator[int] = (i for i in range(100))


REFUSED = {
    Frozen: r"forward changes the frozen parameter 'teacher', .* \(register_buffer\)",
    LateBuffer: r"the model \(LateBuffer\) gets or loses a buffer in forward \(mask\)",
    FreshGenerator: r"the model \(FreshGenerator\) gives other outputs for the same input",
    WithLock: r"module 'second' \(Linear\) has an attribute 'lock' that cannot be copied",
    WithFile: r"the model \(WithFile\) has an attribute 'log' that cannot be copied",
    WithPythonGenerator: r"the model \(WithPythonGenerator\) has an attribute 'schedule' that cannot be copied",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_models_that_cannot_train_correctly_are_refused_by_name(kind: type[nn.Module]) -> None:
    with pytest.raises(ModelError, match=REFUSED[kind]):
        train_to_end(kind())


# ——— other things that a trace would freeze ———


class Does(Net):
    """Calls a function in forward."""

    def __init__(self, what: Callable[["Does", Tensor], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        shift = self.what(self, x) if self.training else None
        outputs = self.first(x) + self.second(x)
        return outputs if shift is None else outputs + shift


def seed_torch(module: Does, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(3)


def seed_torch_inside(module: Does, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.rand(3)


def draw_from_a_new_generator(module: Does, x: Tensor) -> Tensor:
    return torch.rand(3, generator=torch.Generator().manual_seed(0))


def switch_to_evaluation(module: Does, x: Tensor) -> None:
    module.second.eval()


def freeze(module: Does, x: Tensor) -> None:
    module.second.requires_grad_(False)


def clamp(module: Does, x: Tensor) -> None:
    module.first.weight.data.clamp_(-0.1, 0.1)


def cache(module: Does, x: Tensor) -> None:
    module.mask = torch.ones(len(x))


DONE = {
    seed_torch: "forward seeds torch's random numbers",
    seed_torch_inside: "forward seeds random numbers of torch",
    draw_from_a_new_generator: "forward seeds random numbers of torch",
    switch_to_evaluation: "module 'second' (Linear) changes its attribute 'training' in forward",
    freeze: "forward freezes or unfreezes the parameter 'second.weight'",
    clamp: "forward changes the parameter 'first.weight'",
    cache: "the model (Does) changes its attribute 'mask' in forward",
}


@pytest.mark.parametrize("what", DONE, ids=lambda what: what.__name__)
def test_code_that_a_trace_would_freeze_trains_one_by_one_and_the_log_says_why(what: Callable[..., Any]) -> None:
    model = Does(what)
    assert probe(model, EXAMPLES, classes=3).alone_because == DONE[what]
    assert train_to_end(model).parameters.tobytes() == train_to_end(model, width=1).parameters.tobytes()
    assert model.second.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_running_statistics_do_not_hide_a_counter() -> None:
    reason = probe(nn.Sequential(Counter(), nn.BatchNorm1d(3)), EXAMPLES, classes=3).alone_because
    assert reason == "it keeps running statistics; module '0' (Counter) changes its attribute 'calls' in forward"


def test_attributes_that_refer_to_the_model_or_to_themselves_do_not_count_as_changed() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 3))
    loop: list[Any] = [float("nan"), torch.eye(3).to_sparse(), np.array([None, 1], dtype=object)]
    loop.append(loop)
    model.parts = [model, model[0], model[0].weight, loop, logging.getLogger("x"), lambda x: x]
    copied = copy_model(model)
    assert copied.parts[:3] == [copied, copied[0], copied[0].weight]
    given = GivenState(copied)
    given.restore(ADDRESS)
    assert given.find_change() is None
    copied.parts[3][0] = 1.0
    assert given.find_change() == "the model (Sequential) changes its attribute 'parts' in forward"
    given.restore(ADDRESS)
    assert given.find_change() is None
    assert copied.parts[:3] == [copied, copied[0], copied[0].weight]


# ——— the group size is chosen once ———


class Late(nn.Module):
    """Behaves differently once an environment variable is set, which no trial can foresee."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 3)
        self.register_buffer("offset", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        late = os.environ.get("LATE")
        if late == "attribute":
            self.mark = len(x)
        elif late == "draw":
            random.random()
        elif late == "buffer":
            self.offset += 1
        return self.layer(x) * (2.0 if late == "outputs" else 1.0) + self.offset


@pytest.mark.parametrize(("turns", "ends"), [(1, 1), (2, 3), (3, 3), (4, 7)])
def test_a_traced_gradient_is_compared_with_a_fresh_one_at_fixed_rounds(
    turns: int, ends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = fr.iter_rounds(build_experiment(4, rounds=9), federation=build_small_federation(SIZES), model=Late())
    for _ in range(turns):
        next(reports)
    monkeypatch.setenv("LATE", "outputs")
    for _ in range(turns, ends):
        next(reports)
    with pytest.raises(InconsistentModel, match=r"Late: the traced gradient .* execution.vectorize=1"):
        next(reports)  # one of the rounds 2, 4 and 8


def test_a_difference_that_an_actor_detects_ends_the_run_too(
    session: fr.RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"gpus_per_actor": 0, "cpus_per_actor": 0.5, "placement": "pooled", "actors": 2}
    with pytest.raises(InconsistentModel, match=r"'mark' in forward.*execution\.vectorize=1"):
        train_to_end(OnActors(os.getpid()), 2, session=session, **small)


class OnActors(Net):
    """Creates an attribute, but only in processes other than the one of the trial."""

    def __init__(self, driver: int) -> None:
        super().__init__()
        self.driver = driver

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.driver:
            self.mark = len(x)
        return self.first(x)


@pytest.mark.parametrize(
    ("late", "found"),
    [
        ("attribute", "changes its attribute 'mark' in forward"),
        ("draw", "forward draws from Python's random"),
        ("outputs", "the traced gradient differs"),
    ],
)
def test_state_that_appears_in_a_group_ends_the_run(late: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = fr.iter_rounds(build_experiment(4), federation=build_small_federation(SIZES), model=Late())
    next(reports)
    monkeypatch.setenv("LATE", late)
    with pytest.raises(InconsistentModel, match=found):
        list(reports)


def test_a_buffer_that_starts_to_change_ends_a_run_that_would_not_average_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = fr.iter_rounds(build_experiment(1), federation=build_small_federation(SIZES), model=Late())
    next(reports)
    monkeypatch.setenv("LATE", "buffer")
    with pytest.raises(InconsistentModel, match="training changed buffer offset, which"):
        list(reports)


def test_an_attribute_that_changes_late_is_restored_for_clients_that_train_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ends = Late(), []
    for late in ("attribute", ""):
        monkeypatch.setenv("LATE", "")
        reports = fr.iter_rounds(build_experiment(1), federation=build_small_federation(SIZES), model=model)
        next(reports)
        monkeypatch.setenv("LATE", late)
        ends.append(next(reports).parameters)
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("width", [2, 4])
def test_the_comparison_changes_no_bits_and_accepts_dropout(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, 3))
    compared = train_to_end(model, width, rounds=4)
    monkeypatch.setattr("fednar_ray.federated.collection._is_verified", lambda index: False)
    assert train_to_end(model, width, rounds=4).parameters.tobytes() == compared.parameters.tobytes()


@pytest.mark.usefixtures("long_computation")
def test_a_resumed_run_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
    tracked = {"checkpoint": {"every": 1}, "tracking": {"uri": create_store(tmp_path / "m.db")}, "name": "state"}

    def run(rounds: int, *, resume: bool = False) -> fr.Result:
        settings = fr.Experiment.model_validate(
            {**build_experiment(rounds=rounds).model_dump(exclude_unset=True), **tracked}
        )
        model = nn.Sequential(HiddenState(), NumPyDropLayer())
        return fr.run(settings, federation=build_small_federation(SIZES), model=model, resume_newest=resume)

    started = run(2)
    resumed = run(4, resume=True)
    assert resumed.run_id == started.run_id
    assert resumed.resumed_from_round == 2
    model = nn.Sequential(HiddenState(), NumPyDropLayer())
    assert resumed.parameters.tobytes() == train_to_end(model, rounds=4).parameters.tobytes()


class NumPyDropLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand() < 0.7) if self.training else x


# ——— state outside of the module ———

CALLS, SEEN, MASKS, LAZY = [0], [], {}, None
RNG, STATE, COUNT = np.random.default_rng(0), {"calls": 0}, itertools.count()


def tick() -> int:
    STATE["calls"] += 1
    return STATE["calls"]


class InGlobal(Net):
    def takes_part(self) -> bool:
        CALLS[0] += 1
        return CALLS[0] > 20


class InHelper(Net):
    def takes_part(self) -> bool:
        return tick() > 20


class InClass(Net):
    calls = 0

    def takes_part(self) -> bool:
        InClass.calls += 1
        return InClass.calls > 20


class InGlobalGenerator(Net):
    def takes_part(self) -> bool:
        return bool(RNG.random() < 1e-9)


class InGlobalIterator(Net):
    def takes_part(self) -> bool:
        return next(COUNT) > 20


def build_with_closure() -> nn.Module:
    calls = 0

    def act(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.relu(x) if calls > 20 else x

    class Activated(Net):
        def __init__(self) -> None:
            super().__init__()
            self.act = act

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.first(x))

    return Activated()


OUTSIDE = {
    "global": (InGlobal, r"the global '[\w.]*CALLS'"),
    "helper": (InHelper, r"the global '[\w.]*STATE'"),
    "class": (InClass, r"the class attribute 'InClass.calls'"),
    "generator": (InGlobalGenerator, r"the global '[\w.]*RNG'"),
    "iterator": (InGlobalIterator, r"the global '[\w.]*COUNT'"),
    "closure": (build_with_closure, r"the variable 'calls' around act\(\)"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_state_outside_of_the_module_is_refused_by_name(case: str) -> None:
    make, name = OUTSIDE[case]
    with pytest.raises(ModelError, match=f"forward changes {name}, which lies outside of the module"):
        train_to_end(make())


class Caches(Net):
    """Records of calls, caches and warnings that are issued once do not count as state."""

    warned = False

    def forward(self, x: Tensor) -> Tensor:
        global LAZY
        LAZY, Caches.warned = torch.ones(2) if LAZY is None else LAZY, True
        SEEN.append(x.shape)
        mask = MASKS.setdefault(len(MASKS), torch.ones(2))
        return self.first(x * mask * LAZY)


def test_caches_and_records_outside_of_the_module_do_not_reduce_the_group_size() -> None:
    assert probe(Caches(), EXAMPLES, classes=3).alone_because is None
    assert len(SEEN) > 2


class CountsCalls(Net):
    """A value that no output depends on does not count as state."""

    calls, seconds = 0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        CountsCalls.calls += 1
        CountsCalls.seconds += 0.25
        PASSES[tuple(x.shape)] += 1
        return self.first(x)


PASSES: Counts[tuple[int, ...]] = Counts()


def test_unused_counts_outside_of_the_module_do_not_reduce_the_group_size() -> None:
    PASSES.clear()
    assert probe(CountsCalls(), EXAMPLES, classes=3).alone_because is None
    assert 2 < CountsCalls.calls < 50, "the values that a trial shifts are put back"


def test_hooks_that_record_activations_do_not_reduce_the_group_size_even_in_a_second_run() -> None:
    seen: dict[str, Tensor] = {}
    plain = nn.Sequential(nn.Linear(2, 3))
    hooked = copy.deepcopy(plain)
    hooked[0].register_forward_hook(lambda module, inputs, outputs: seen.update(first=outputs.detach()))
    hooked.seen = seen
    for _ in range(2):
        assert probe(hooked, EXAMPLES, classes=3).alone_because is None
        assert train_to_end(hooked, 4).parameters.tobytes() == train_to_end(plain, 4).parameters.tobytes()


def test_multi_layer_recurrent_models_train_in_groups() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.levels, self.last = nn.GRU(1, 4, 2, batch_first=True, dropout=0.2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.levels(x.unsqueeze(2))[0][:, -1])

    assert probe(Recurrent(), EXAMPLES, classes=3).alone_because is None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_module_trains_as_its_original_module() -> None:
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    scripted = torch.jit.trace(module, torch.zeros(2, 2))
    np.testing.assert_allclose(
        train_to_end(scripted, 1).parameters, train_to_end(module, 1).parameters, rtol=1e-5, atol=1e-7
    )


def test_plain_models_train_in_groups() -> None:
    for model in (nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.5), nn.Linear(9, 3))):
        assert probe(model, EXAMPLES, classes=3).alone_because is None


class Remembers(Net):
    """A model that writes state only in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.last = x.shape
        return self.first(x)


def test_state_written_only_in_evaluation_does_not_reduce_the_group_size() -> None:
    assert probe(Remembers(), EXAMPLES, classes=3).alone_because is None
    assert train_to_end(Remembers(), 4).parameters.tobytes() == train_to_end(Remembers(), 4).parameters.tobytes()


def test_a_module_that_was_run_before_is_copied_without_its_graph() -> None:
    class Keeps(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = {"outputs": [self.first(x)]}
            return self.kept["outputs"][0]

    model = Keeps()
    model(torch.ones(2, 2))
    copied = copy_model(model)
    torch.testing.assert_close(copied.kept["outputs"][0], model.kept["outputs"][0].detach())
    assert np.isfinite(train_to_end(model).parameters).all()
