"""Real searches for tests: their files, and what two of them have in common."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import yaml

import fednar_ray as fr
from fednar_ray.config import Document
from fednar_ray.config.loading import parse_document
from fednar_ray.tuning import final_runs, search_result
from fednar_ray.tuning.search import SearchResult
from fednar_ray.tuning.search_status import SearchStatus
from fednar_ray.tuning.strategy import build_space
from fednar_ray.tuning.trial_table import FINISHED

IGNORED_WARNINGS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Tune warns about itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]
SEARCH_ROUNDS = 6
A, DECAY, RATE = "regularizer.clip_bound", "regularizer.weight_decay", "algorithm.local_lr"


def dump_search(uri: str, search: Mapping[str, Any], **experiment: Any) -> str:
    """Returns a search file. By default one trial runs at a time, since each process takes seconds to start."""
    execution = experiment.pop("execution", {"placement": "serial"})
    base = {
        "name": "small",
        "data": {"source": "digits", "validation": 0.1, "partition": {"kind": "dirichlet", "clients": 6}},
        "model": {"name": "mlp", "hidden": 8},
        "federation": {"rounds": SEARCH_ROUNDS, "clients_per_round": 3, "local_steps": 3, "batch_size": 16},
        "checkpoint": {"every": None},
        "tracking": {"uri": uri},
        "execution": execution,
    }
    search = {"checkpoint_seconds": 0, "concurrent": 1, **search}
    return yaml.safe_dump({"experiment": {**base, **experiment}, "search": search})


def build_search(uri: str, search: Mapping[str, Any], **experiment: Any) -> Document:
    return parse_document(dump_search(uri, search, **experiment), "search.yaml", to_search=True)


def show_nothing(status: SearchStatus) -> None:
    """Shows nothing."""


@contextmanager
def draw_no_pages(*, report: bool = False) -> Iterator[None]:
    """Lets searches draw no pages of their final runs, nor a report: this takes most of the time of a small search.

    Args:
        report: Whether the report is drawn nevertheless.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final_runs, "train", partial(final_runs.train, with_page=False))
        if not report:
            patch.setattr(search_result, "_write_report", lambda table: None)
        yield


def list_outcomes(result: SearchResult) -> list[tuple[Any, ...]]:
    """Returns what two searches with the same seed have in common: values, status, rounds and metric of each trial."""
    return sorted((sorted(e.values.items()), e.status, e.rounds, e.value) for e in result.trials)


def draw_values(document: Document) -> list[dict[str, Any]]:
    """Returns the values that a random search must try, drawn one after the other from its seed."""
    assert document.search is not None
    space, generator = build_space(document.search), np.random.RandomState(document.search.seed)
    return [
        {key: domain.sample(random_state=generator) for key, domain in space.items()}
        for _ in range(document.search.trials)
    ]


def train_alone(document: Document, points: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Returns ``list_outcomes`` of an undisturbed search: each experiment is trained alone in this process, by rounds.

    Neither Tune nor a checkpoint nor another process takes part.
    """
    assert document.search is not None
    search = document.search.resolve_metric("accuracy")
    outcomes = []
    for values in points:
        runs = [list(fr.iter_rounds(document.build_variant({**values, "seed": seed}))) for seed in range(search.seeds)]
        value = float(np.mean([reports[-1].metrics[search.metric] for reports in runs]))
        outcomes.append((sorted(values.items()), FINISHED, len(runs[0]), value))
    return sorted(outcomes)


OPTUNA = {
    "algorithm": "optuna",
    "trials": 12,
    "scheduler": {"name": "asha", "grace_rounds": 2, "reduction": 2},
    "space": {RATE: {"loguniform": [0.001, 1.0]}, DECAY: {"loguniform": [1e-4, 0.3]}},
}


GRID = {
    "algorithm": "grid",
    "metric": "validation_loss",
    "mode": "min",
    "space": {RATE: {"grid": [0.02, 0.3]}, "regularizer.name": {"choice": ["fednar", "none"]}},
}
