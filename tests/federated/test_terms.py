"""Large updates are added in terms: wherever a term's groups are trained, the sums have the same bits."""

import itertools
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fednar_ray.algorithms.client_corrections import (
    ClientCorrection,
    LocalRound,
    control_variate,
    dynamic,
    plain,
    proximal,
)
from fednar_ray.algorithms.regularizers import REGULARIZERS
from fednar_ray.core.blocks import BLOCK, LARGE_BYTES, cut_columns
from fednar_ray.core.file_rows import FileRow
from fednar_ray.core.flat_params import FloatVector, flatten
from fednar_ray.core.messages import Broadcast, ClientMetrics, GroupTask, GroupUpdate, TermTask
from fednar_ray.core.schedules import RoundScalars, Workload
from fednar_ray.execution.dispatch import join_terms
from fednar_ray.federated.aggregation import TERMS, RoundSums, number_terms
from fednar_ray.federated.client_states import ClientStates
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.local_steps import build_correction
from fednar_ray.federated.training_plan import TrainingPlan
from tests.conftest import build_small_federation
from tests.support.faulty_models import build_tasks

CPU = torch.device("cpu")
SIZES = (7, 30, 12, 3, 21, 9, 16)
GROUPS = ((0, 1), (2,), (3, 4), (5,), (6,))
WIDTH = 50_000  # of a model with 1.2 MB of parameters


def build_wide_model(width: int = WIDTH) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 3))


def build_plan(model: nn.Module, correction: ClientCorrection, **changes: Any) -> TrainingPlan:
    workload = Workload(batch_size=4, local_steps=2, local_epochs=None)
    plan = TrainingPlan(
        model=model,
        correction=correction,
        regularizer=REGULARIZERS["fednar"],
        weighted=True,
        workload=workload,
        seed=3,
        changed_buffers=(),
    )
    return replace(plan, **changes)


def build_round(model: nn.Module, correction: ClientCorrection) -> Broadcast:
    parameters = flatten(model)
    shared = {name: draw_vector(len(parameters), 1) for name in correction.shared}
    scalars = RoundScalars(local_lr=0.1, weight_decay=0.01, clip_bound=1.0, epsilon=0.0)
    return Broadcast(round_index=0, scalars=scalars, parameters=parameters, shared=shared, buffers=None)


def draw_vector(dimension: int, seed: int) -> FloatVector:
    return np.random.default_rng(seed).normal(scale=1e-3, size=dimension).astype(np.float32)


def build_term(broadcast: Broadcast, correction: ClientCorrection) -> list[GroupTask]:
    """Returns the tasks of one term; every second client has a state already."""
    if correction.next_state is None:
        return [GroupTask(client_ids=group, states=None, term=0) for group in GROUPS]
    dimension = len(broadcast.parameters)
    states = {client: draw_vector(dimension, 7 + client) if client % 2 else None for client in range(len(SIZES))}
    return [GroupTask(client_ids=group, states=tuple(states[i] for i in group), term=0) for group in GROUPS]


def sum_up(updates: list[GroupUpdate]) -> tuple[dict[str, bytes], list[Any]]:
    """Returns the sums and the states of a round, and what is known of its clients."""
    sums = RoundSums(round_index=0, weighted=True)
    states: list[bytes] = []
    for update in updates:
        sums.add(update)
        states += [state.tobytes() for state in update.states or () if isinstance(state, np.ndarray)]
    names = ("examples", "delta_norms", "losses", "included")
    columns = [np.concatenate([getattr(m, name) for m in sums.metrics]).tolist() for name in names]
    assert sums.vectors.delta is not None
    changes = {name: change.tobytes() for name, change in sums.shared_changes.items()}
    return {"delta": sums.vectors.delta.tobytes(), "states": b"".join(states), **changes}, columns


CORRECTIONS = {"plain": plain(), "prox": proximal(0.1), "control": control_variate(), "dynamic": dynamic(0.1)}


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("width", [5, WIDTH])
def test_a_term_has_the_same_bits_wherever_its_groups_are_added(name: str, width: int) -> None:
    correction, model = CORRECTIONS[name], build_wide_model(width)
    trainer = GroupTrainer(build_plan(model, correction), build_small_federation(SIZES).shards, CPU)
    broadcast = build_round(model, correction)
    tasks = build_term(broadcast, correction)
    single = sum_up([trainer.train(broadcast, task) for task in tasks])
    for cut in range(1, len(tasks) + 1):  # the first groups in an actor, and the others one by one
        first = trainer.train_term(broadcast, TermTask(groups=tuple(tasks[:cut])))
        assert sum_up([first, *(trainer.train(broadcast, task) for task in tasks[cut:])]) == single, cut


@pytest.mark.parametrize("name", ["prox", "control", "dynamic"])
def test_blocks_of_columns_give_the_bits_of_whole_vectors(name: str) -> None:
    correction, model = CORRECTIONS[name], build_wide_model()
    assert sum(p.numel() for p in model.parameters()) > 4 * BLOCK
    broadcast = build_round(model, correction)
    results = []
    for elementwise in (True, False):
        plan = build_plan(model, correction._replace(is_elementwise=elementwise))
        trainer = GroupTrainer(plan, build_small_federation(SIZES).shards, CPU)
        results.append(sum_up([trainer.train(broadcast, task) for task in build_term(broadcast, correction)]))
    assert results[0] == results[1]


def test_a_correction_that_is_not_elementwise_sees_whole_vectors() -> None:
    def correct(r: LocalRound) -> Any:
        return lambda grad, params: grad / grad.norm()

    params = torch.ones(1, 5 * BLOCK)
    round_ = LocalRound(global_params=params[0], shared={}, state=params[:, :0], local_lr=0.1)
    corrected = build_correction(ClientCorrection(correct), round_, params)(params.clone(), params)
    assert float(corrected.norm()) == pytest.approx(1.0, rel=1e-3)  # of float32; sums of five blocks would be 2.2


@pytest.mark.parametrize("rows", [1, 2, 7, 3 * BLOCK])
def test_blocks_cover_every_column_once(rows: int) -> None:
    for columns in (0, 1, 63, 4 * BLOCK // rows, 4 * BLOCK // rows + 1, 5 * BLOCK + 3):
        matrix = torch.empty(rows, 1).expand(rows, columns)
        covered = [i for block in cut_columns(matrix) for i in range(block.start, block.stop)]
        assert covered == list(range(columns))


def test_only_large_updates_of_many_groups_are_added_in_terms() -> None:
    assert number_terms(20, LARGE_BYTES - 1) == [None] * 20
    assert number_terms(TERMS, LARGE_BYTES) == [None] * TERMS
    assert number_terms(10, LARGE_BYTES) == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    for groups in range(TERMS + 1, 60):
        terms = number_terms(groups, LARGE_BYTES)
        sizes = [len(list(same)) for _, same in itertools.groupby(terms)]
        assert len(sizes) == TERMS
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("actors", "joined"), [(1, 4), (2, 4), (3, 3), (4, 4), (5, 0), (8, 0)])
def test_every_actor_gets_as_many_whole_terms(actors: int, joined: int) -> None:
    tasks = [replace(task, term=i // 3) for i, task in enumerate(build_tasks(*((i,) for i in range(11))))]
    work = join_terms(tasks, actors)
    whole = [each for each in work if isinstance(each, TermTask)]
    assert len(whole) == joined
    assert work[:joined] == whole
    assert [each.client_ids for each in work[joined:]] == [task.client_ids for task in tasks[3 * joined :]]
    assert [i for each in work for i in each.client_ids] == list(range(11))


def test_groups_without_a_term_are_never_joined() -> None:
    tasks = build_tasks((0,), (1,), (2,))
    assert join_terms(tasks, 1) == tasks


def test_metrics_of_several_groups_follow_each_other() -> None:
    model = build_wide_model(5)
    plan = build_plan(model, plain(), workload=Workload(batch_size=4, local_steps=None, local_epochs=1))
    trainer = GroupTrainer(plan, build_small_federation(SIZES).shards, CPU)
    broadcast = build_round(model, plain())
    short, long = (trainer.train(broadcast, task).metrics for task in build_tasks((3,), (1, 4)))
    for first, second in ((short, long), (long, short)):
        both = first.followed_by(second)
        assert isinstance(both, ClientMetrics)
        assert both.client_ids == first.client_ids + second.client_ids
        assert both.losses.tolist() == [*first.losses, *second.losses]
        assert both.train_seconds == first.train_seconds + second.train_seconds
        points = [row[~np.isnan(row)].tolist() for row in both.norm_points]
        assert points == [row[~np.isnan(row)].tolist() for each in (first, second) for row in each.norm_points]


def write_from_elsewhere(place: FileRow, row: FloatVector) -> None:
    from fednar_ray.core.file_rows import RowWriter

    writer = RowWriter([place])
    for block in (slice(0, 2), slice(2, len(row))):
        writer.put(block, torch.from_numpy(row[None, block]))
    writer.get()


def test_another_process_reads_and_writes_the_rows_of_a_file(tmp_path: Path) -> None:
    states, row = ClientStates(5, 0, tmp_path), draw_vector(5, 0)
    states.restore(0, draw_vector(5, 1), 0)
    place, current = states.lend(), states.locate(0)
    assert place is not None
    assert isinstance(current, FileRow)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(current.read).tobytes() == draw_vector(5, 1).tobytes()
        pool.apply(write_from_elsewhere, (place, row))
    states.stage(0, place)
    assert states.get(0).tobytes() == draw_vector(5, 1).tobytes()  # type: ignore[union-attr]
    states.commit(1)
    assert states.get(0).tobytes() == row.tobytes()  # type: ignore[union-attr]


def test_a_place_that_was_lent_in_vain_is_never_used_again(tmp_path: Path) -> None:
    states = ClientStates(5, 0, tmp_path)
    lost, used = states.lend(), states.lend()
    assert lost is not None
    assert used is not None
    write_from_elsewhere(used, draw_vector(5, 0))
    states.stage(0, used)
    states.commit(0)
    for version in range(1, 20):
        states.restore(1, draw_vector(5, version), version)
        write_from_elsewhere(lost, np.full(5, np.nan, dtype=np.float32))  # an actor that was given up, much later
        assert np.isfinite(states.get(1)).all()  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        states.stage(2, lost)


def test_places_that_are_given_up_take_no_space(tmp_path: Path) -> None:
    dimension = 2**18
    states = ClientStates(dimension, 0, tmp_path)
    for round_index in range(8):
        place = states.lend()
        assert place is not None
        write_from_elsewhere(place, np.ones(dimension, dtype=np.float32))
        states.restore(0, np.full(dimension, round_index, dtype=np.float32), round_index)
        with place.open("rb") as file:
            assert os.fstat(file.fileno()).st_blocks * 512 <= 3 * 4 * dimension  # two rows, and what was lent now
    assert states.get(0)[-1] == 7  # type: ignore[index]


def test_rows_in_memory_have_no_place() -> None:
    states = ClientStates(5, 10**6)
    states.restore(0, draw_vector(5, 0), 0)
    assert states.lend() is None
    assert isinstance(states.locate(0), np.ndarray)
    assert states.locate(1) is None


def test_large_rows_go_to_a_file_at_once(tmp_path: Path) -> None:
    dimension = LARGE_BYTES // 4
    states = ClientStates(dimension, None, tmp_path)
    states.restore(0, np.ones(dimension, dtype=np.float32), 0)
    assert isinstance(states.locate(0), FileRow)
    states = ClientStates(dimension - 1, None, tmp_path)
    states.restore(0, np.ones(dimension - 1, dtype=np.float32), 0)
    assert isinstance(states.locate(0), np.ndarray)


def test_another_file_of_the_same_descriptor_is_not_written_to(tmp_path: Path) -> None:
    states = ClientStates(5, 0, tmp_path)
    place = states.lend()
    assert place is not None
    other = (tmp_path / "other").open("w+b")
    os.dup2(other.fileno(), int(place.path.rpartition("/")[2]))  # the descriptor is that of another file by now
    with pytest.raises(OSError, match="the file has been closed"):
        write_from_elsewhere(place, draw_vector(5, 0))
    with pytest.raises(OSError, match="the file has been closed"):
        place.read()
    other.close()
    assert (tmp_path / "other").stat().st_size == 0


def test_a_state_that_is_the_update_itself_is_copied() -> None:
    last_update = ClientCorrection(lambda _: lambda grad, params: grad, lambda r, delta, steps: delta)
    model = build_wide_model(5)
    trainer = GroupTrainer(build_plan(model, last_update), build_small_federation(SIZES).shards, CPU)
    broadcast = build_round(model, last_update)
    tasks = [GroupTask(client_ids=(i,), states=(None,), term=0) for i in range(3)]
    wanted = [trainer.train(broadcast, task).weighted_delta / SIZES[task.client_ids[0]] for task in tasks]
    states = trainer.train_term(broadcast, TermTask(groups=tuple(tasks))).states
    np.testing.assert_allclose(np.stack(states), np.stack(wanted), rtol=1e-5)  # type: ignore[arg-type]


class Sparse(nn.Module):
    """Looks its inputs' signs up in a table, whose gradient is sparse if wanted."""

    def __init__(self, is_sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(3, 3, sparse=is_sparse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table((x[:, 0] > 0).long())


def test_sparse_gradients_train_as_dense_ones() -> None:
    np.testing.assert_allclose(train_alone(Sparse(True), 3), train_alone(Sparse(False), 3), rtol=1e-6)


class Sometimes(nn.Module):
    """Uses one of two layers, depending on the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[int(x.sum() > 0)](x)


class Twice(nn.Module):
    """Uses its layer in two parts of the backward pass, each of which gives a part of the gradient."""

    def __init__(self, recomputes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head, self._recomputes = nn.Linear(2, 2), nn.Linear(2, 3), recomputes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()  # without that a checkpoint gives its parameters no gradient
        for _ in range(2):
            x = checkpoint(self.layer, x, use_reentrant=True) if self._recomputes else self.layer(x)
        return self.head(x)


def train_alone(model: nn.Module, steps: int) -> FloatVector:
    plan = build_plan(model, plain(), workload=Workload(batch_size=2, local_steps=steps, local_epochs=None))
    trainer = GroupTrainer(plan, build_small_federation(SIZES).shards, CPU)
    return trainer.train(build_round(model, plain()), build_tasks((1,))[0]).weighted_delta


def test_a_parameter_without_a_gradient_in_a_step_has_none_of_an_earlier_step() -> None:
    model = Sometimes()
    parameters = list(model.parameters())
    plan = build_plan(model, plain(), regularizer=REGULARIZERS["none"])
    plan = replace(plan, workload=Workload(batch_size=1, local_steps=12, local_epochs=None))
    trainer = GroupTrainer(plan, build_small_federation(SIZES).shards, CPU)
    broadcast = build_round(model, plain())
    update = trainer.train(broadcast, build_tasks((1,))[0])
    x = trainer._shards
    batches = x.plan((1,), np.array([12]), 1, plan.seed, 0, None)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    used = set()
    for step in range(12):
        inputs, labels = batches.unpadded_batch(step)
        used.add(bool(inputs.sum() > 0))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert used == {True, False}
    wanted = (flatten(model) - broadcast.parameters) * 30
    np.testing.assert_allclose(update.weighted_delta, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_that_come_in_parts_are_added() -> None:
    np.testing.assert_allclose(train_alone(Twice(True), 3), train_alone(Twice(False), 3), rtol=1e-5, atol=1e-7)
