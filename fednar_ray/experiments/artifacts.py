"""What a run logs besides its rounds: parameters, data and a figure at its start; figures and the model at its end."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from fednar_ray.config import flatten_chosen_settings
from fednar_ray.core.client_names import ClientNames, are_named, name_client
from fednar_ray.core.errors import RunFailed, first_line
from fednar_ray.core.metric_names import is_higher_better
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.core.reports import RoundRecord
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.experiments.placement import ExecutionPlan
from fednar_ray.experiments.prepare import Prepared
from fednar_ray.report.answers import describe_run
from fednar_ray.report.plots import draw_curves, draw_partition, draw_step_norms
from fednar_ray.report.run_plots import find_measure
from fednar_ray.tracking.clients_file import write_client_names
from fednar_ray.tracking.datasets import TRAINING, DataSummary
from fednar_ray.tracking.file_writes import raise_as_run_failed
from fednar_ray.tracking.mlflow import RunTracker
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_views import RUNS_KEY, RunView
from fednar_ray.tracking.tags import KIND_TAG, PRIMARY_TAG

log = logging.getLogger("fednar_ray")


def log_inputs(
    prepared: Prepared, plan: ExecutionPlan, tracker: RunTracker, directory: Path, data_digest: str, *, nested: bool
) -> None:
    """Logs the experiment, the data, and where clients are trained; and the view of the runs unless it is nested."""
    if not nested:
        tracker.log_view(build_experiment_view(prepared.experiment.name, prepared.primary))
    federation = prepared.federation
    tracker.log_params(flatten_chosen_settings(prepared.experiment))
    tracker.log_tags({**plan.build_tags(), PRIMARY_TAG: prepared.primary})
    for summary in _summarize_data(federation, data_digest):
        tracker.log_data(summary)
    tracker.log_experiment(prepared.experiment)
    clients = write_client_names(directory, federation.client_names)
    if clients is not None:
        tracker.log_file(clients)
    counts, names = federation.label_counts(), federation.client_names
    _log_figure(tracker, lambda path: draw_partition(counts, path, names), RunDirectory(directory).partition_plot)


def _summarize_data(federation: FederatedData, digest: str) -> Iterator[DataSummary]:
    """Yields the training data, which the digest identifies, and the held-out data of each split."""
    splits = {TRAINING: federation.shards.examples, **federation.splits()}
    table = federation.preprocessing.schema if isinstance(federation.preprocessing, TablePreprocessing) else None
    for context, examples in splits.items():
        of_split = digest if context == TRAINING else hashlib.sha256(f"{digest} {context}".encode()).hexdigest()
        yield DataSummary(
            name=federation.name,
            digest=of_split[:16],
            clients=federation.num_clients,
            examples=len(examples),
            input_shape=examples.x.shape[1:],
            classes=federation.classes,
            context=context,
            input_type=str(examples.x.dtype),
            columns=() if table is None else tuple((column.name, column.kind) for column in table.columns),
            label=None if table is None else table.label,
        )


def log_outputs(
    prepared: Prepared,
    tracker: RunTracker,
    directory: Path,
    history: Sequence[RoundRecord],
    model: nn.Module,
    *,
    nested: bool,
) -> None:
    """Logs the plots of all rounds, the excluded clients, the model and the answer.

    The answer is also that of the MLflow experiment, unless the run is nested in a comparison or a search.

    Raises:
        RunFailed: The disk is full.
    """
    files, names = RunDirectory(directory), prepared.federation.client_names
    measure = find_measure(history, prepared.primary).name
    _log_figure(tracker, lambda path: draw_curves(history, path, measure), files.curves_plot)
    _log_figure(tracker, lambda path: draw_step_norms(history, path, names), files.step_norms_plot)
    tracker.log_file(files.journal)
    _log_excluded_clients(tracker, history, files.excluded_clients_table.name, names)
    preprocessing = prepared.federation.preprocessing
    schema = preprocessing.schema if isinstance(preprocessing, TablePreprocessing) else None
    tracker.save_model(model, prepared.federation.build_example(), schema)
    if schema is not None:
        with raise_as_run_failed(files.schema):
            schema.write(files.schema)
    _save_parameters(model, files.parameters)
    note = describe_run(prepared.experiment, history, prepared.primary)
    tracker.log_note(note, None if nested else directory.name)


def build_experiment_view(name: str, primary: str) -> RunView:
    """Builds the view of an experiment's runs: the primary metric on the test set, and what makes runs differ."""
    return RunView(
        key=RUNS_KEY,
        name=f"{name}: best first",
        metrics=[name_in_mlflow(f"test_{primary}")],
        params=["algorithm.name", "regularizer.name", "regularizer.clip_bound", "regularizer.weight_decay", "seed"],
        tags=[KIND_TAG],
        ascending=not is_higher_better(primary),
    )


def _log_excluded_clients(
    tracker: RunTracker, history: Sequence[RoundRecord], name: str, client_names: ClientNames
) -> None:
    named = are_named(client_names)
    rows = [
        {"round": record.round_index, "client": client_id}
        | ({"name": name_client(client_id, client_names)} if named else {})
        | {"reason": str(exclusion)}
        for record in history
        for client_id, exclusion in record.exclusions.items()
    ]
    if rows:
        tracker.log_table(rows, name)


def _log_figure(tracker: RunTracker, draw: Callable[[Path], Path], path: Path) -> None:
    """Draws a figure and logs it. One that cannot be written is warned about: the run does without it."""
    try:
        draw(path)
    except OSError as error:
        log.warning("%s was not drawn: %s", path, error.strerror or error)
        with suppress(OSError):
            path.unlink()  # half a figure
    else:
        tracker.log_file(path)


def _save_parameters(model: nn.Module, path: Path) -> None:
    try:
        with raise_as_run_failed(path):
            torch.save(model.state_dict(), path)
    except RuntimeError as error:  # torch's own, for a file that it cannot write
        raise RunFailed(f"{path} cannot be written: {first_line(error)}") from error
