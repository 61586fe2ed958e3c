"""What MLflow has of runs, read back: any store, whoever wrote to it."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run as Run
from mlflow.exceptions import MlflowException

from fednar_ray.core.errors import BadInput
from fednar_ray.core.reports import RoundRecord
from fednar_ray.tracking.arrival import read_run
from fednar_ray.tracking.journal import is_round, parse
from fednar_ray.tracking.lines import whole_lines
from fednar_ray.tracking.mlflow import Store, answering
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.tags import PARENT_TAG

NEWEST_FIRST = ("attributes.start_time DESC",)
OF_FIGURES = (
    "test_accuracy", "validation_accuracy", "test_rmse", "validation_rmse", "train_loss", "clip_fraction",
    "effective_weight_decay", "weight_decay", "clip_bound", "step_norm", "step_norm_p10", "step_norm_p90",
)  # fmt: skip
"""The metrics that pictures of a run are made of."""

History = tuple[tuple[int, float], ...]
"""(round, value), in the order of rounds; without the rounds that were not evaluated."""


def run_of(store: Store, run_id: str) -> Run | None:
    """The run of that id; None where the store has none. Raises TrackingUnavailable."""
    with answering(store.uri):
        try:
            return read_run(store.client, run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def children_of(store: Store, run: Run) -> list[Run]:
    """The runs nested in a run, in the order in which they began. Raises TrackingUnavailable."""
    wanted = f"tags.`{PARENT_TAG}` = '{run.info.run_id}'"
    with answering(store.uri):
        return list(runs_like(store.client, [run.info.experiment_id], wanted))[::-1]


def records_of(store: Store, run: Run) -> tuple[RoundRecord, ...]:
    """The rounds of a run: of one that has finished its journal, of others what their metrics show.

    Raises TrackingUnavailable, and BadInput where there is no round.
    """
    run_id, finished = run.info.run_id, run.info.status == "FINISHED"
    journal = RunDirectory(Path()).journal.name
    with answering(store.uri):
        if finished and any(file.path == journal for file in store.client.list_artifacts(run_id)):
            with tempfile.TemporaryDirectory() as directory:
                lines = whole_lines(Path(store.client.download_artifacts(run_id, journal, directory)), is_round)
                return tuple(map(parse, lines))
    return measured(store, run, OF_FIGURES)


def measured(store: Store, run: Run, names: Sequence[str]) -> tuple[RoundRecord, ...]:
    """The rounds of a run, from these metrics. Raises TrackingUnavailable, and BadInput where there is none."""
    with answering(store.uri):
        histories = {name: dict(history_of(store.client, run, name)) for name in names}
    rounds = sorted(set().union(*histories.values()))
    if not rounds:
        raise BadInput(f"MLflow at {store.uri} has no round of run {run.info.run_id}")
    return tuple(
        RoundRecord(
            round_index=t,
            metrics={name: history[t] for name, history in histories.items() if t in history},
            client_ids=(),
            exclusions={},
        )
        for t in rounds
    )


def history_of(client: MlflowClient, run: Run, metric: str) -> History:
    """A metric by round; of a round that was trained twice, what it gave the last time."""
    if metric not in run.data.metrics:
        return ()
    points = client.get_metric_history(run.info.run_id, metric)
    return tuple({point.step: point.value for point in sorted(points, key=lambda p: (p.step, p.timestamp))}.items())


def runs_like(client: MlflowClient, experiments: Sequence[str], wanted: str) -> Iterator[Run]:
    """The runs that a filter finds, newest first."""
    return pages(lambda token: client.search_runs(experiments, wanted, order_by=list(NEWEST_FIRST), page_token=token))


def pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """What is found, over all of MLflow's pages."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return
