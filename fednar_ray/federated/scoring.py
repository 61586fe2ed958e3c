"""Scores examples on one device: a batch goes through the model, predictions and losses come out."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fednar_ray.config.execution import Precision
from fednar_ray.core.buffers import copy_buffers, restore_buffers
from fednar_ray.core.flat_params import ParameterLayout, load_buffers, trainable
from fednar_ray.core.messages import EvalParams, Scores, ScoringTask
from fednar_ray.core.metric_sums import MetricSums
from fednar_ray.core.module_state import GivenState, copy_with_leaf_parameters
from fednar_ray.core.random import Purpose, seed_global_generators, seed_sequence, torch_seed
from fednar_ray.core.transfers import as_tensor, on_device
from fednar_ray.data.examples import Examples, Shards
from fednar_ray.federated.precision import autocast, restore_float32, use_precision
from fednar_ray.models.tasks import CLASSIFICATION, Task

BATCH = 512  # examples per forward pass
CLIENTS = "clients"
Offsets = npt.NDArray[np.int64]
Resident = dict[str, tuple[Tensor, Tensor]]
"""The splits that are on a device, by name: inputs and labels."""


class Scorer:
    """Scores examples on one device, where the model and the splits stay.

    Args:
        model: The network, which is copied.
        shards: The clients' own examples.
        splits: The held-out examples by name.
        device: Where to compute.
        task: The loss and the predictions.
        offsets: Where each client's part of a split starts, [N + 1], for splits that are here as a whole.
        seed: The experiment's seed, for random layers.
        changed_buffers: The names of the buffers that ``EvalParams`` holds; None: all of them.
        precision: In what outputs are computed.
        resident: The splits that are on the device already, to which others are added. Scorers of the same data share
            it.
    """

    def __init__(
        self,
        model: nn.Module,
        shards: Shards,
        splits: Mapping[str, Examples],
        device: torch.device,
        task: Task = CLASSIFICATION,
        offsets: Mapping[str, Offsets] | None = None,
        seed: int = 0,
        changed_buffers: Sequence[str] | None = None,
        precision: Precision = "float32",
        resident: Resident | None = None,
    ) -> None:
        self._changed_buffers, self._precision = changed_buffers, precision
        self._task, self._offsets, self._seed = task, offsets or {}, seed
        self._model = copy_with_leaf_parameters(model).to(device).eval()
        self._given, self._given_buffers = GivenState(self._model), copy_buffers(self._model)
        self._shards, self._splits, self._device = shards, {**splits, CLIENTS: shards.examples}, device
        self._resident: Resident = {} if resident is None else resident
        self._layout = ParameterLayout.of(self._model)
        self._loaded: tuple[object, ...] = ()
        self.forget()

    def forget(self) -> None:
        """Frees the memory of the parameters, until the next batch is scored."""
        self._loaded = ()
        for parameter in trainable(self._model):
            parameter.data = parameter.data.new_empty(0)

    def score(self, eval_params: EvalParams, task: ScoringTask) -> Scores | MetricSums:
        """Returns the scores of the task's examples, or their sums if the task asks for sums only."""
        x, y = self._get_rows(task)
        parts = [self._score_batch(eval_params, x, y, i, task.start + i) for i in range(0, len(y), BATCH)]
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if not task.with_outputs:
            del columns["outputs"]
        if self._task.is_correct is None:
            columns["errors"] = columns["predictions"] - y
        else:
            columns["correct"] = self._task.is_correct(columns["predictions"], y)
        arrays: dict[str, Any] = {name: column.cpu().numpy() for name, column in columns.items()}
        scores = Scores(**{"correct": None, **arrays})
        return self._task.metric_sums(y.cpu().numpy(), scores) if task.sums_only else scores

    def _score_batch(
        self, eval_params: EvalParams, x: Tensor, y: Tensor, first: int, address: int
    ) -> dict[str, Tensor]:
        """Scores the batch that starts at row ``first``, with the model as given: no batch depends on earlier ones.

        Random layers draw from generators whose address is the round and the batch's place in its split.
        """
        where = {"round_index": eval_params.round_index, "client_id": address}
        seeds = seed_sequence(self._seed, Purpose.SCORING, **where)
        self._given.restore(seeds)
        self._load(eval_params)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), seed_global_generators(seeds):
            torch.default_generator.manual_seed(torch_seed(self._seed, Purpose.SCORING, **where))
            if devices:
                torch.cuda.manual_seed(torch_seed(self._seed, Purpose.SCORING, **where))
            return self._predict(x[first : first + BATCH], y[first : first + BATCH])

    def _load(self, eval_params: EvalParams) -> None:
        """Loads parameters and buffers, unless they are loaded and no forward pass has written to them."""
        if self._loaded != (eval_params.round_index, *self._iter_versions()):
            self._place(as_tensor(eval_params.parameters).to(self._device, copy=True))
            restore_buffers(self._model, self._given_buffers)
            load_buffers(self._model, eval_params.buffers, self._changed_buffers)
            self._loaded = (eval_params.round_index, *self._iter_versions())

    def _place(self, vector: Tensor) -> None:
        """Makes the trainable parameters views of ``vector`` [d], their only copy here."""
        values = self._layout.unflatten(vector)
        for name, parameter in zip(self._layout.names, trainable(self._model), strict=True):
            parameter.data = values[name]

    def _iter_versions(self) -> Iterator[tuple[int, int]]:
        for tensor in chain(self._model.parameters(), self._model.buffers()):
            yield id(tensor), tensor._version

    @torch.no_grad()
    def _predict(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Returns what ``Scores`` holds for x [n, …] and y [n], by name, as far as it follows from the outputs."""
        transform, task = self._shards.transform, self._task
        with use_precision(self._precision, self._device), autocast(self._precision, self._device):
            outputs = restore_float32(self._model(x if transform is None else transform.normalize(x)))
        found = {"predictions": task.predictions(outputs), "losses": task.losses(outputs, y), "outputs": outputs}
        if task.confidences is not None:
            found["confidences"] = task.confidences(outputs)
        if task.log_losses is not None:
            found["log_losses"] = task.log_losses(outputs, y)
        return found

    def _get_rows(self, task: ScoringTask) -> tuple[Tensor, Tensor]:
        if task.split not in self._resident:
            split = self._splits[task.split]
            self._resident[task.split] = on_device(split.x, self._device), on_device(split.y, self._device)
        start, stop = task.start, task.stop
        if task.client_id is not None and task.split == CLIENTS:
            starts, sizes = self._shards.rows((task.client_id,))
            start, stop = int(starts[0]), int(starts[0] + sizes[0])
        elif task.client_id is not None and task.split in self._offsets:
            first = int(self._offsets[task.split][task.client_id])
            start, stop = first + start, first + stop
        x, y = self._resident[task.split]
        return x[start:stop], y[start:stop]
