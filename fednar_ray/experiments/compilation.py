"""Decides before round 0 whether the local steps of a run are one compiled program each."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fednar_ray.config.algorithm import OwnAlgorithmSettings
from fednar_ray.core.errors import CompilationFailed, first_line
from fednar_ray.core.stages import announce
from fednar_ray.data.batches import GroupShape, compute_padded_batch_size
from fednar_ray.data.examples import Examples, Shards
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.compiler import find_compiler_problem
from fednar_ray.federated.vectorization import CPU, even_out, is_compiling_worthwhile

if TYPE_CHECKING:  # a run in this process imports no Ray
    from fednar_ray.execution.session import RaySession

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True)
class Compilation:
    """What was decided: the shape of the compiled program, and the group size that fills it best."""

    program: GroupShape | None  # None: steps are not compiled
    group_size: int


def decide_compilation(prepared: Prepared, group_size: int, *, gpu: bool, session: "RaySession | None") -> Compilation:
    """Decides whether a run's steps are compiled, from its settings, model, planned steps and kind of device.

    If they are, they are compiled here, so that a model that cannot be compiled trains without.

    Args:
        prepared: The run.
        group_size: C without compiling.
        gpu: Whether clients train on GPUs. A driver cannot compile for these, so their actors do.
        session: Whose nodes need a compiler. None: clients train in this process.
    """
    setting = prepared.experiment.execution.compile
    # what compiling gains on a GPU has not been measured
    if setting == "off" or (setting == "auto" and (gpu or not _is_worthwhile(prepared, group_size))):
        return Compilation(None, group_size)
    clients = prepared.clients_per_round
    height = even_out(clients, group_size)
    batch_size, largest = prepared.experiment.federation.batch_size, int(prepared.federation.shards.sizes.max())
    shape = GroupShape(height, compute_padded_batch_size(largest, batch_size))
    problem = _find_problem(prepared) or _find_compiler_problem(session)
    if problem is None and not gpu:
        problem = _try_to_compile(prepared, shape)
    if problem is not None:
        log.warning("the local steps are not compiled: %s", problem)
        return Compilation(None, group_size)
    return Compilation(shape, height)


def _is_worthwhile(prepared: Prepared, group_size: int) -> bool:
    """Returns whether compiling for CPUs is shorter than what it saves in the planned rounds."""
    federation = prepared.experiment.federation
    steps = federation.workload.steps(prepared.federation.shards.sizes)
    planned = federation.rounds * float(np.mean(steps)) * prepared.clients_per_round
    return is_compiling_worthwhile(prepared.traits, group_size, federation.batch_size, planned, CPU)


def _find_problem(prepared: Prepared) -> str | None:
    """Returns what about the run prevents compiling; None if nothing does."""
    if prepared.traits.alone_because is not None:
        return prepared.traits.alone_because
    if isinstance(prepared.experiment.algorithm, OwnAlgorithmSettings):
        return "the algorithm is a function of your own, whose Python code runs in every step"
    return None


def _find_compiler_problem(session: "RaySession | None") -> str | None:
    problem = find_compiler_problem()
    if problem is not None or session is None or session.owns_ray:
        return problem
    from fednar_ray.execution.compilers import find_compiler_problem_of_cluster

    return find_compiler_problem_of_cluster()


def _try_to_compile(prepared: Prepared, shape: GroupShape) -> str | None:
    """Compiles the local step, or finds that it is compiled. Returns why it cannot be compiled, if so."""
    announce("compiling the local step, once for this machine")
    examples, transform = prepared.federation.shards.examples, prepared.federation.transform
    two = Examples(examples.x[[0, -1]], examples.y[[0, -1]])
    shards = Shards(two, np.array([0, 2]), transform=transform)
    try:
        GroupTrainer(prepared.build_training_plan(shape), shards, torch.device("cpu")).warm_up((0,))
    except CompilationFailed as error:
        return first_line(error.__cause__ or error, 200)
    return None
