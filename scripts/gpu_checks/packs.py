"""Measures trials that differ in numbers: as rows of one matrix, and one after the other. Both on the same device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import workloads as w
from gpu_checks.runs import Run, build_workload_run, measure_rounds

from fednar_ray.execution.serial import SerialPool
from fednar_ray.experiments.iter_rounds import build_initial_state, build_round_plan, train_rounds
from fednar_ray.experiments.pack_member import PackMember
from fednar_ray.experiments.placement import SerialTrainer
from fednar_ray.experiments.prepare import adapt
from fednar_ray.federated.pack_trainer import GPU_MATRIX_BYTES, PackTrainer

Row = dict[str, Any]
TRIALS, ALONE = 32, 4
"""How many trials there are, and how many of them are trained one after the other."""
ROWS = (80, 320, 640)  # the last is GPU_MATRIX_ROWS, which is assumed
"""The rows of a full matrix."""
ROUNDS = 100


def measure_packs(device: torch.device, left: Callable[[], float], *, tiny: bool) -> Iterator[Row]:
    """Measures the time that a round of a trial takes: first one after the other, then in packs.

    Args:
        device: Where to train.
        left: Returns the seconds that are left.
        tiny: Whether four trials with few clients are enough.
    """
    workload = w.Workload("mlp", clients=4, sampled=2, steps=2, batch=2) if tiny else w.WORKLOADS["mlp"]
    trials, rounds = (4, 3) if tiny else (TRIALS, ROUNDS)
    title = f"{trials} trials of W1 with FedNAR that differ in A and weight decay: the time of one trial's round"
    yield {"gflop": 1e-9 * w.count_round_flops(workload), "title": title}
    run = build_workload_run(workload, rounds, device, "fedavg", "fednar", compile="off")
    alone = Trials(run, ALONE)
    yield _describe("one after the other", run.plan.group_size, alone.measure(None), ALONE)
    for rows in ROWS[: 1 if tiny else None]:
        label = f"in a pack of {rows} rows"
        if left() < 10:
            yield {"system": label, "skipped": f"{left():.0f} s are left"}
            continue
        pack = PackTrainer(rows, GPU_MATRIX_BYTES)
        found = _describe(label, rows, Trials(run, trials).measure(pack), trials)
        if pack.is_refused:  # then the trials have trained one after the other
            found = {"system": label, "skipped": "the rows of a matrix do not have the bits of their own runs here"}
        yield found


def _describe(system: str, group: int, found: Row, trials: int) -> Row:
    """Returns a row of the table, per trial."""
    seconds = found["round_seconds"] / trials
    return {"system": system, "precision": "float32", "group": group, **found, "round_seconds": seconds}


@dataclass
class Trials:
    """Trials that take turns on one device, round by round. They differ in A and weight decay."""

    run: Run
    count: int

    def measure(self, pack: PackTrainer | None) -> Row:
        """Measures the rounds of all trials together, trained ahead by ``pack`` if there is one."""
        rounds = self._train(pack)
        return measure_rounds(lambda: next(rounds), self.run.prepared.experiment.federation.rounds, self.run.device)

    def train(self, pack: PackTrainer | None) -> list[bytes]:
        """Trains all rounds, and returns the parameters of each trial."""
        *_, last = self._train(pack)
        return last

    def _train(self, pack: PackTrainer | None) -> Iterator[list[bytes]]:
        """Trains a round of each trial at a time, and yields their parameters."""
        trainer = SerialTrainer(self.run.prepared, self.run.device)
        members = [self._start(trainer, number) for number in range(self.count)]
        for _ in range(self.run.prepared.experiment.federation.rounds):
            if pack is not None:
                starts = [member.start_next_round() for member, _ in members]
                pack.train_ahead([start for start in starts if start is not None])
            yield [next(rounds).parameters.tobytes() for _, rounds in members]

    def _start(self, trainer: SerialTrainer, number: int) -> tuple[PackMember, Iterator[Any]]:
        base = self.run.prepared.experiment
        values = {"clip_bound": 0.5 * (number + 1), "weight_decay": 0.01 / (number + 1)}
        experiment = base.model_copy(update={"regularizer": base.regularizer.model_copy(update=values)})
        prepared = adapt(self.run.prepared, experiment)
        pool, state, member = trainer.build_pool(prepared), build_initial_state(prepared), PackMember(trainer)
        assert isinstance(pool, SerialPool)
        member.enter(pool, build_round_plan(prepared, self.run.plan), state)
        return member, train_rounds(prepared, self.run.plan, pool, state)
