"""What a trainer reads in place, what it keeps, and what a process gets without the parameters' values."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fednar_ray.algorithms.client_corrections import Correction, LocalRound, control_variate, plain
from fednar_ray.algorithms.regularizers import REGULARIZERS
from fednar_ray.core.flat_params import FloatVector, flatten
from fednar_ray.core.messages import Broadcast, EvalParams, GroupTask, GroupUpdate, ScoringTask
from fednar_ray.core.schedules import RoundScalars, Workload
from fednar_ray.core.transfers import ALIGNED_BYTES, is_aligned
from fednar_ray.federated.aggregation import RoundSums
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.scoring import Scorer
from fednar_ray.federated.training_plan import TrainingPlan
from tests.conftest import build_small_federation

CPU = torch.device("cpu")
SCALARS = RoundScalars(local_lr=0.1, weight_decay=0.01, clip_bound=1.0, epsilon=0.0)


def place(vector: FloatVector, offset: int) -> FloatVector:
    """Returns a read-only copy that starts so many bytes behind an aligned address, as in Ray's object store."""
    room = np.zeros(vector.nbytes + 2 * ALIGNED_BYTES, dtype=np.uint8)
    start = -room.ctypes.data % ALIGNED_BYTES + offset
    placed = room[start : start + vector.nbytes].view(np.float32)
    placed[:] = vector
    placed.flags.writeable = False
    return placed


def build_plan(model: nn.Module) -> TrainingPlan:
    return TrainingPlan(
        model=model,
        correction=control_variate(),
        regularizer=REGULARIZERS["fednar"],
        weighted=True,
        workload=Workload(batch_size=4, local_steps=3, local_epochs=None),
        seed=3,
        changed_buffers=(),
    )


def build_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    model[2].bias.requires_grad_(False)
    return model


def train(plan: TrainingPlan, model: nn.Module, offset: int) -> GroupUpdate:
    """Trains client 1 with SCAFFOLD, with all vectors so many bytes behind an aligned address."""
    parameters = flatten(model)
    rng = np.random.default_rng(0)
    control, state = (rng.normal(size=len(parameters)).astype(np.float32) for _ in range(2))
    broadcast = Broadcast(
        round_index=0,
        scalars=SCALARS,
        parameters=place(parameters, offset),
        shared={"control": place(control, offset)},
        buffers=None,
    )
    trainer = GroupTrainer(plan, build_small_federation((6, 18)).shards, CPU)
    return trainer.train(broadcast, GroupTask(client_ids=(1,), states=(place(state, offset),)))


def get_bytes(update: GroupUpdate) -> list[bytes]:
    assert update.states is not None
    vectors = update.weighted_delta, *update.states, update.shared_changes["control"]
    return [vector.tobytes() for vector in vectors if isinstance(vector, np.ndarray)]


def test_vectors_that_are_read_in_place_give_the_bits_of_copies() -> None:
    model = build_model()
    assert is_aligned(place(flatten(model), 0))
    assert not is_aligned(place(flatten(model), 4))
    in_place = get_bytes(train(build_plan(model), model, 0))
    assert in_place == get_bytes(train(build_plan(model), model, 4))
    assert len(set(in_place)) == 3


def test_a_plan_without_values_trains_the_same_and_keeps_what_no_broadcast_has() -> None:
    model, plan = build_model(), build_plan(build_model())
    hollow = plan.without_values()
    assert get_bytes(train(plan, model, 0)) == get_bytes(train(hollow, model, 0))
    weight, bias = hollow.model[0].weight, hollow.model[2].bias  # type: ignore[index,union-attr]
    assert (weight.shape, weight.untyped_storage().nbytes()) == ((4, 2), 4)
    assert torch.equal(bias, model[2].bias)  # type: ignore[index,union-attr,arg-type]
    assert not bias.requires_grad


def test_a_scorer_frees_the_parameters_between_rounds_and_scores_the_same() -> None:
    model, federation = build_model(), build_small_federation((6, 18))
    plan = build_plan(model).without_values()
    scorer = Scorer(plan.model, federation.shards, {}, CPU)
    parameters = EvalParams(round_index=0, parameters=place(flatten(model), 0), buffers=np.empty(0))
    task = ScoringTask(split="clients", start=0, stop=24, with_outputs=True)
    first = scorer.score(parameters, task)
    scorer.forget()
    again = scorer.score(parameters, task)
    x = torch.from_numpy(federation.shards.examples.x)
    wanted = model(x).detach().numpy()
    assert first.outputs.tobytes() == again.outputs.tobytes()  # type: ignore[union-attr]
    np.testing.assert_allclose(first.outputs, wanted, rtol=1e-6)  # type: ignore[union-attr]


def test_metrics_do_not_keep_the_memory_of_an_update() -> None:
    model = build_model()
    update = train(build_plan(model), model, 0)
    sums = RoundSums(round_index=0, weighted=True)
    sums.add(update)
    (kept,) = sums.metrics
    assert kept.examples.tolist() == update.metrics.examples.tolist() == [18]
    for name in ("included", "examples", "steps", "clipped_steps", "step_norms", "norm_points", "losses"):
        assert not np.shares_memory(getattr(kept, name), getattr(update.metrics, name)), name


def test_only_pure_corrections_read_in_place() -> None:
    assert plain().is_pure
    assert control_variate().is_pure
    model = build_model()
    impure = control_variate()._replace(is_pure=False, correction=overwrite)
    update = train(replace(build_plan(model), correction=impure), model, 0)
    assert np.isfinite(update.weighted_delta).all()


def overwrite(r: LocalRound) -> Correction:
    """Writes to what it is given, which would end the process if that lay in Ray's object store."""
    r.state.zero_()
    r.global_params.add_(0.0)
    r.shared["control"].zero_()
    return lambda grad, params: grad
