"""Reads runs back from any MLflow store."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run as Run
from mlflow.exceptions import MlflowException

from fednar_ray.core.errors import BadInput
from fednar_ray.core.metric_names import CLIENT_METRICS, HIGHER_IS_BETTER, SPLITS
from fednar_ray.core.private_metrics import PRIVATE_METRICS
from fednar_ray.core.reports import RoundRecord
from fednar_ray.tracking.arrival import open_artifacts, read_run
from fednar_ray.tracking.clients_file import read_client_names
from fednar_ray.tracking.journal import is_round, parse_line
from fednar_ray.tracking.json_lines import read_lines
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.store import Store, raise_as_unavailable
from fednar_ray.tracking.tags import PARENT_TAG, PRIMARY_TAG, TRIAL_TAG

NEWEST_FIRST = ("attributes.start_time DESC",)
PLOTTED_METRICS = (
    *(f"{split}_{name}" for split in ("test", "validation") for name in HIGHER_IS_BETTER),
    "train_loss", "clip_fraction",
    "effective_weight_decay", "weight_decay", "clip_bound", "step_norm", "step_norm_p10", "step_norm_p90",
    *CLIENT_METRICS, *PRIVATE_METRICS, "update_norm", "bytes_down", "bytes_up", "round_seconds", "client_seconds",
)  # fmt: skip
"""The metrics that the pages of runs and comparisons show."""

History = tuple[tuple[int, float], ...]
"""(round, value) pairs in the order of rounds, without the rounds that were not evaluated."""


def find_mlflow_run(store: Store, run_id: str) -> Run | None:
    """Returns the run of that id; None if the store has none. Raises TrackingUnavailable."""
    with raise_as_unavailable(store.uri):
        try:
            return read_run(store.client, run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def get_name(run: Run) -> str:
    """Returns the name of a trial, or of the experiment of another run. MLflow's name of a run says more than that."""
    name: str = run.data.tags.get(TRIAL_TAG) or run.data.params.get("name") or run.info.run_name
    return name


def list_children(store: Store, run: Run) -> list[Run]:
    """Returns the runs nested in a run, in the order of their starts. Raises TrackingUnavailable."""
    wanted = f"tags.`{PARENT_TAG}` = '{run.info.run_id}'"
    with raise_as_unavailable(store.uri):
        return list(search_runs_where(store.client, [run.info.experiment_id], wanted))[::-1]


def read_rounds(store: Store, run: Run) -> tuple[RoundRecord, ...]:
    """Reads the rounds of a run: from its journal if it has finished, else from PLOTTED_METRICS and its primary metric.

    Raises:
        TrackingUnavailable: The store does not answer.
        BadInput: The run has no round.
    """
    run_id, finished = run.info.run_id, run.info.status == "FINISHED"
    journal = RunDirectory(Path()).journal.name
    with tempfile.TemporaryDirectory() as directory:
        if finished and (path := download_file(store, run_id, journal, Path(directory))) is not None:
            return tuple(map(parse_line, read_lines(path, is_round)))
    primary = run.data.tags.get(PRIMARY_TAG)  # possibly a metric of the user's own
    own = () if primary is None else tuple(f"{split}_{primary}" for split in SPLITS)
    return read_metrics(store, run, tuple(dict.fromkeys((*PLOTTED_METRICS, *own))))


def download_client_names(store: Store, run: Run) -> tuple[str, ...]:
    """Returns the names of a run's clients, by client id; empty if they have none. Raises TrackingUnavailable."""
    with tempfile.TemporaryDirectory() as directory:
        download_file(store, run.info.run_id, RunDirectory(Path()).clients.name, Path(directory))
        return read_client_names(Path(directory))


def download_file(store: Store, run_id: str, name: str, directory: Path) -> Path | None:
    """Downloads an artifact into a directory, and returns its path; None if the run has none of that name."""
    directory.mkdir(parents=True, exist_ok=True)
    with raise_as_unavailable(store.uri):
        artifacts = open_artifacts(store.client, read_run(store.client, run_id).info.artifact_uri)
        if any(file.path == name for file in artifacts.list_artifacts()):
            return Path(artifacts.download_artifacts(name, str(directory)))
    return None


def read_metrics(store: Store, run: Run, names: Sequence[str]) -> tuple[RoundRecord, ...]:
    """Reads the rounds of a run from the metrics ``names``. Raises as ``read_rounds`` does."""
    with raise_as_unavailable(store.uri):
        histories = {name: dict(read_history(store.client, run, name)) for name in names}
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


def read_history(client: MlflowClient, run: Run, metric: str) -> History:
    """Reads a metric over rounds. For a round that was trained twice, the later value is taken."""
    name = name_in_mlflow(metric)
    if name not in run.data.metrics:
        return ()
    points = client.get_metric_history(run.info.run_id, name)
    return tuple({point.step: point.value for point in sorted(points, key=lambda p: (p.step, p.timestamp))}.items())


def search_runs_where(client: MlflowClient, experiments: Sequence[str], wanted: str) -> Iterator[Run]:
    """Yields the runs that match a filter of MLflow's search, newest first."""
    return iterate_pages(
        lambda token: client.search_runs(experiments, wanted, order_by=list(NEWEST_FIRST), page_token=token)
    )


def iterate_pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yields the results of a search from all of MLflow's pages."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return
