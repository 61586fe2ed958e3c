"""Evaluation: actors score examples in large batches, and the driver computes the metrics.

Scores are returned per example, in the order of the split, so a metric does not depend on who scored which examples.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.core.messages import EvalParams, Scores, ScoringTask
from fednar_ray.core.metric_sums import MetricSums
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.federated.client_summaries import compute_client_means, summarize_accuracies, summarize_errors
from fednar_ray.federated.own_metrics import OwnMetric, compute_own_metrics
from fednar_ray.federated.scoring import BATCH, CLIENTS
from fednar_ray.models.metrics import compute_perplexity
from fednar_ray.models.tasks import TASKS, Task

TASK_BATCHES = 4  # batches per call: more work than the call costs, and enough calls to keep all actors busy
Score = Callable[[EvalParams, Sequence[ScoringTask]], Iterator[Scores | MetricSums]]


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
