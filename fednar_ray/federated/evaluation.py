"""Evaluation: actors score examples in large batches, and the driver computes the metrics.

Scores are returned per example, in the order of the split, so a metric does not depend on who scored which examples.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fednar_ray.core.buffers import copy_buffers, restore_buffers
from fednar_ray.core.flat_params import load_buffers, load_parameters
from fednar_ray.core.messages import EvalParams, Scores, ScoringTask
from fednar_ray.core.metric_sums import MetricSums
from fednar_ray.core.module_state import GivenState, copy_with_leaf_parameters
from fednar_ray.core.random import Purpose, seed_global_generators, seed_sequence, torch_seed
from fednar_ray.core.transfers import on_device
from fednar_ray.data.examples import Array, Examples, Shards
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.models.tasks import CLASSIFICATION, TASKS, Task, compute_perplexity

BATCH = 512  # examples per forward pass
TASK_BATCHES = 4  # batches per call: more work than the call costs, and enough calls to keep all actors busy
CLIENTS = "clients"
SPLITS = ("validation", "test")  # of a federation, where it has them

Score = Callable[[EvalParams, Sequence[ScoringTask]], Iterator[Scores | MetricSums]]
Offsets = npt.NDArray[np.int64]


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
    ) -> None:
        self._changed_buffers = changed_buffers
        self._task, self._offsets, self._seed = task, offsets or {}, seed
        self._model = copy_with_leaf_parameters(model).to(device).eval()
        self._given, self._given_buffers = GivenState(self._model), copy_buffers(self._model)
        self._shards, self._splits, self._device = shards, {**splits, CLIENTS: shards.examples}, device
        self._resident: dict[str, tuple[Tensor, Tensor]] = {}
        self._loaded: tuple[object, ...] = ()

    def score(self, eval_params: EvalParams, task: ScoringTask) -> Scores | MetricSums:
        """Returns the scores of the task's examples, or their sums if the task asks for sums only."""
        x, y = self._get_rows(task)
        parts = [self._score_batch(eval_params, x, y, i, task.start + i) for i in range(0, len(y), BATCH)]
        predictions, losses = (torch.cat(column) for column in zip(*parts, strict=True))
        is_correct = self._task.is_correct
        correct = None if is_correct is None else is_correct(predictions, y).cpu().numpy()
        scores = Scores(predictions=predictions.cpu().numpy(), correct=correct, losses=losses.cpu().numpy())
        return self._task.metric_sums(y.cpu().numpy(), scores) if task.sums_only else scores

    def _score_batch(
        self, eval_params: EvalParams, x: Tensor, y: Tensor, first: int, address: int
    ) -> tuple[Tensor, Tensor]:
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
            load_parameters(self._model, eval_params.parameters)
            restore_buffers(self._model, self._given_buffers)
            load_buffers(self._model, eval_params.buffers, self._changed_buffers)
            self._loaded = (eval_params.round_index, *self._iter_versions())

    def _iter_versions(self) -> Iterator[tuple[int, int]]:
        for tensor in chain(self._model.parameters(), self._model.buffers()):
            yield id(tensor), tensor._version

    @torch.no_grad()
    def _predict(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the predictions for x [n, …] and their losses against y [n]: [n], [n]."""
        transform = self._shards.transform
        outputs = self._model(x if transform is None else transform.normalize(x))
        return self._task.predictions(outputs), self._task.losses(outputs, y)

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


class Evaluation:
    """Computes the metrics of parameters.

    Args:
        federation: The examples, and what the labels mean.
        score: Scores tasks somewhere.
        splits: The names of the splits to evaluate.
        federated: Whether each client's own examples are evaluated too.
        by_client: Whether an actor holds, and scores, only its own client's examples.
        texts: Whether whole numbers as inputs may be tokens. False: the model takes them for quantities.
    """

    def __init__(
        self,
        federation: FederatedData,
        score: Score,
        splits: Collection[str],
        *,
        federated: bool,
        by_client: bool,
        texts: bool = True,
    ) -> None:
        self._score, self._task = score, TASKS[federation.task]
        self._offsets, self._metrics_only = federation.shards.offsets, federation.metrics_only
        self._next_tokens = texts and federation.task == "classification" and _has_tokens(federation.test)
        held_out = {name: split for name, split in federation.splits().items() if name in splits}
        self._labels = {name: split.y for name, split in held_out.items()}
        own = federation.split_offsets()
        self._tasks = [
            task
            for name, split in held_out.items()
            for task in (_split_by_client(name, own[name]) if name in own else _split_by_range(name, len(split)))
        ]
        if federated:
            alone, block = by_client or self._metrics_only, len(federation.shards.examples)
            self._tasks += _split_by_client(CLIENTS, self._offsets) if alone else _split_by_range(CLIENTS, block)
        if self._metrics_only:
            self._tasks = [replace(task, sums_only=True) for task in self._tasks]

    def __call__(self, eval_params: EvalParams) -> dict[str, float]:
        """Returns the metrics by name: ``<split>_<metric>``, and those of ``summarize_accuracies`` for clients.

        Classification has accuracy and macro_f1 in 0..1, loss in nats, and perplexity if inputs are sequences of
        tokens. Binary has accuracy, loss in nats, and auc if both labels occur; if only sums may leave a silo, the auc
        compares no example with one of another silo. Regression has rmse, and loss, its square.
        """
        gathered: dict[str, list[Any]] = {}
        for task, answer in zip(self._tasks, self._score(eval_params, self._tasks), strict=True):
            gathered.setdefault(task.split, []).append(answer)
        metrics: dict[str, float] = {}
        for name, parts in gathered.items():
            if name == CLIENTS:
                metrics |= self._summarize_clients(parts)
            else:
                metrics |= {f"{name}_{metric}": value for metric, value in self._split_metrics(name, parts).items()}
        return metrics

    def _split_metrics(self, split: str, parts: Sequence[Any]) -> dict[str, float]:
        metric_sums = (
            reduce(MetricSums.__add__, parts) if self._metrics_only else self._compute_metric_sums(split, parts)
        )
        metrics = self._task.metrics(metric_sums)
        return metrics | {"perplexity": compute_perplexity(metrics["loss"])} if self._next_tokens else metrics

    def _compute_metric_sums(self, split: str, parts: Sequence[Scores]) -> MetricSums:
        return self._task.metric_sums(self._labels[split], _join_scores(parts))

    def _summarize_clients(self, parts: Sequence[Any]) -> dict[str, float]:
        if self._task.is_correct is None:
            return summarize_errors(self._compute_means(parts, "losses"))
        return summarize_accuracies(self._compute_means(parts, "correct"))

    def _compute_means(self, parts: Sequence[Any], name: str) -> npt.NDArray[np.float64]:
        """Returns the mean of each client that has examples, in the order of clients."""
        if self._metrics_only:
            return np.array([getattr(metric_sums, name) / metric_sums.examples for metric_sums in parts])
        return compute_client_means(getattr(_join_scores(parts), name), self._offsets)


def list_metric_names(federation: FederatedData, splits: Collection[str], *, federated: bool) -> tuple[str, ...]:
    """Returns the names of the metrics that an ``Evaluation`` of this federation reports.

    Args:
        federation: Its task and its labels decide: an auc takes both labels, a perplexity takes tokens.
        splits: The splits that are evaluated, as far as the federation has them.
        federated: Whether each client's own examples are evaluated too.

    Returns:
        The names, in the order in which they are reported.
    """
    task, names = TASKS[federation.task], []
    for split, examples in federation.splits().items():
        if split in splits and len(examples):
            names += [f"{split}_{metric}" for metric in _list_split_metrics(task, examples.y)]
            names += (
                [f"{split}_perplexity"] if federation.task == "classification" and _has_tokens(federation.test) else []
            )
    if federated:
        names += list(summarize_errors(np.ones(1)) if task.is_correct is None else summarize_accuracies(np.ones(1)))
    return tuple(names)


def _list_split_metrics(task: Task, y: Array) -> list[str]:
    """Returns the names of the metrics of a split with the labels y [n]. They do not depend on the model."""
    correct = None if task.is_correct is None else np.ones(len(y), dtype=np.bool_)
    scores = Scores(predictions=y, correct=correct, losses=np.zeros(len(y), dtype=np.float32))
    return list(task.metrics(task.metric_sums(y, scores)))


def _has_tokens(examples: Examples) -> bool:
    """Returns whether inputs are sequences of whole numbers."""
    return examples.x.ndim == 2 and np.issubdtype(examples.x.dtype, np.integer)


def _join_scores(parts: Sequence[Scores]) -> Scores:
    correct = [part.correct for part in parts if part.correct is not None]
    return Scores(
        predictions=np.concatenate([part.predictions for part in parts]),
        correct=np.concatenate(correct) if correct else None,
        losses=np.concatenate([part.losses for part in parts]),
    )


def _split_by_client(split: str, offsets: npt.NDArray[np.int64]) -> list[ScoringTask]:
    """Returns one task per client's part of a split. Rows are counted from the start of the part."""
    sizes = np.diff(offsets).tolist()
    return [ScoringTask(split=split, start=0, stop=size, client_id=i) for i, size in enumerate(sizes) if size]


def _split_by_range(split: str, examples: int) -> list[ScoringTask]:
    length = BATCH * TASK_BATCHES
    starts = range(0, examples, length)
    return [ScoringTask(split=split, start=start, stop=min(start + length, examples)) for start in starts]


def summarize_accuracies(accuracies: npt.NDArray[np.float64]) -> dict[str, float]:
    """Returns the mean of the clients' accuracies, and the mean of the worst tenth (at least one client)."""
    ordered = np.sort(accuracies)
    return {
        "client_accuracy_mean": float(ordered.mean()),
        "client_accuracy_worst_decile": _average_first_tenth(ordered),
    }


def summarize_errors(mean_squares: npt.NDArray[np.float64]) -> dict[str, float]:
    """Returns the same of the clients' root mean squared errors, of which the highest are the worst."""
    errors = np.sort(np.sqrt(mean_squares))[::-1]
    return {"client_rmse_mean": float(errors.mean()), "client_rmse_worst_decile": _average_first_tenth(errors)}


def compute_client_means(values: Array, offsets: Offsets) -> npt.NDArray[np.float64]:
    """Computes the mean of each client that has examples, in the order of clients.

    Args:
        values: One value per example, clients one after the other, [Σ n_i].
        offsets: Where each client's values start, [N + 1].
    """
    sizes = np.diff(offsets)
    starts = offsets[:-1][sizes > 0]
    sums: npt.NDArray[np.float64] = np.add.reduceat(values, starts, dtype=np.float64)
    return sums / sizes[sizes > 0]


def _average_first_tenth(ordered: npt.NDArray[np.float64]) -> float:
    return float(ordered[: max(1, len(ordered) // 10)].mean())
