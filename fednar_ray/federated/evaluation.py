"""Evaluation: actors score examples in large batches, and the driver computes the metrics.

Scores are returned per example, in the order of the split, so a metric does not depend on who scored which examples.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
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
from fednar_ray.core.metric_names import SPLITS as SPLITS
from fednar_ray.core.metric_sums import MetricSums
from fednar_ray.core.module_state import GivenState, copy_with_leaf_parameters
from fednar_ray.core.random import Purpose, seed_global_generators, seed_sequence, torch_seed
from fednar_ray.core.transfers import on_device
from fednar_ray.data.examples import Array, Examples, Shards
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.federated.own_metrics import OwnMetric, compute_own_metrics
from fednar_ray.models.metrics import compute_perplexity
from fednar_ray.models.tasks import CLASSIFICATION, TASKS, Task

BATCH = 512  # examples per forward pass
TASK_BATCHES = 4  # batches per call: more work than the call costs, and enough calls to keep all actors busy
CLIENTS = "clients"

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
            load_parameters(self._model, eval_params.parameters)
            restore_buffers(self._model, self._given_buffers)
            load_buffers(self._model, eval_params.buffers, self._changed_buffers)
            self._loaded = (eval_params.round_index, *self._iter_versions())

    def _iter_versions(self) -> Iterator[tuple[int, int]]:
        for tensor in chain(self._model.parameters(), self._model.buffers()):
            yield id(tensor), tensor._version

    @torch.no_grad()
    def _predict(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Returns what ``Scores`` holds for x [n, …] and y [n], by name, as far as it follows from the outputs."""
        transform, task = self._shards.transform, self._task
        outputs = self._model(x if transform is None else transform.normalize(x))
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


class Evaluation:
    """Computes the metrics of parameters.

    Args:
        federation: The examples, and what the labels mean.
        score: Scores tasks somewhere.
        splits: The names of the splits to evaluate.
        federated: Whether each client's own examples are evaluated too.
        by_client: Whether an actor holds, and scores, only its own client's examples.
        texts: Whether whole numbers as inputs may be tokens. False: the model takes them for quantities.
        task: The loss and the metrics; None: those of the federation's task.
        own_metrics: The user's own metrics.
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
        task: Task | None = None,
        own_metrics: Sequence[OwnMetric] = (),
    ) -> None:
        self._score, self._task = score, task or TASKS[federation.task]
        self._task_name, self._own_metrics = federation.task, own_metrics
        self._offsets, self._metrics_only = federation.shards.offsets, federation.metrics_only
        self._next_tokens = texts and federation.task == "classification" and _has_tokens(federation.test)
        held_out = {name: split for name, split in federation.splits().items() if name in splits}
        self._labels = {name: split.y for name, split in held_out.items()}
        own = federation.split_offsets()
        self._tasks = [
            each
            for name, split in held_out.items()
            for each in (_split_by_client(name, own[name]) if name in own else _split_by_range(name, len(split)))
        ]
        if federated:
            alone, block = by_client or self._metrics_only, len(federation.shards.examples)
            self._tasks += _split_by_client(CLIENTS, self._offsets) if alone else _split_by_range(CLIENTS, block)
        if self._metrics_only:
            self._tasks = [replace(each, sums_only=True) for each in self._tasks]
        if federation.task == "classification" and any(metric.takes_outputs for metric in own_metrics):
            self._tasks = [replace(each, with_outputs=each.split != CLIENTS) for each in self._tasks]

    def __call__(self, eval_params: EvalParams) -> dict[str, float]:
        """Returns the metrics by name: ``<split>_<metric>``, and those of ``summarize_accuracies`` for clients.

        ``metric_names.METRICS_BY_TASK`` lists the metrics of each task. A perplexity takes inputs that are sequences of
        tokens; auc and average_precision take both labels, and r2 labels that differ. If only sums may leave a silo,
        auc and average_precision are computed from a histogram of all silos' logits.
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
        if self._metrics_only:
            metrics = self._task.metrics(reduce(MetricSums.__add__, parts))
        else:
            metrics = self._compute_exact_metrics(self._labels[split], _join_scores(parts))
        return metrics | {"perplexity": compute_perplexity(metrics["log_loss"])} if self._next_tokens else metrics

    def _compute_exact_metrics(self, y: Array, scores: Scores) -> dict[str, float]:
        metrics = self._task.metrics(self._task.metric_sums(y, scores)) | self._task.exact_metrics(y, scores)
        own = compute_own_metrics(self._own_metrics, y, scores.predictions, scores.outputs, self._task_name)
        return {**metrics, **own}

    def _summarize_clients(self, parts: Sequence[Any]) -> dict[str, float]:
        name = "squares" if self._task.is_regression else "correct"
        if self._metrics_only:
            means = np.array([getattr(metric_sums, name) / metric_sums.examples for metric_sums in parts])
        else:
            scores = _join_scores(parts)
            values = scores.correct if scores.errors is None else np.square(scores.errors)
            assert values is not None
            means = compute_client_means(values, self._offsets)
        return summarize_errors(means) if self._task.is_regression else summarize_accuracies(means)


def list_metric_names(
    federation: FederatedData, splits: Collection[str], *, federated: bool, own: Sequence[str] = ()
) -> tuple[str, ...]:
    """Returns the names of the metrics that an ``Evaluation`` of this federation reports.

    Args:
        federation: Its task and its labels decide: an auc takes both labels, a perplexity takes tokens.
        splits: The splits that are evaluated, as far as the federation has them.
        federated: Whether each client's own examples are evaluated too.
        own: The names of the user's own metrics.

    Returns:
        The names, in the order in which they are reported.
    """
    task, names = TASKS[federation.task], []
    for split, examples in federation.splits().items():
        if split in splits and len(examples):
            names += [f"{split}_{metric}" for metric in (*_list_split_metrics(task, examples.y), *own)]
            names += (
                [f"{split}_perplexity"] if federation.task == "classification" and _has_tokens(federation.test) else []
            )
    if federated:
        names += list(summarize_errors(np.ones(1)) if task.is_correct is None else summarize_accuracies(np.ones(1)))
    return tuple(names)


def _list_split_metrics(task: Task, y: Array) -> list[str]:
    """Returns the names of the metrics of a split with the labels y [n]. They do not depend on the model."""
    zeros = np.zeros(len(y), dtype=np.float32)
    correct = None if task.is_correct is None else zeros.astype(np.bool_)
    scores = Scores(predictions=y, correct=correct, losses=zeros, errors=zeros, confidences=zeros)
    return list(task.metrics(task.metric_sums(y, scores)) | task.exact_metrics(y, scores))


def _has_tokens(examples: Examples) -> bool:
    """Returns whether inputs are sequences of whole numbers."""
    return examples.x.ndim == 2 and np.issubdtype(examples.x.dtype, np.integer)


def _join_scores(parts: Sequence[Scores]) -> Scores:
    """Joins scores in their order."""
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Scores)}
    joined: dict[str, Any] = {name: None if some[0] is None else np.concatenate(some) for name, some in columns.items()}
    return Scores(**joined)


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
