"""What a run logs besides its rounds: parameters and data at its start; the model and its page at its end."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fednar_ray.config import flatten_chosen_settings
from fednar_ray.core.client_names import ClientNames, are_named, name_client
from fednar_ray.core.errors import RunFailed, first_line
from fednar_ray.core.fednar_table_schema import TableSchema
from fednar_ray.core.metric_names import is_higher_better
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.core.reports import RoundRecord
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.experiments.alerts import Alert
from fednar_ray.experiments.model_shape import count_outputs
from fednar_ray.experiments.placement import ExecutionPlan
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.plots import draw_curves
from fednar_ray.report.run_page import build_run_page
from fednar_ray.report.run_plots import find_measure
from fednar_ray.tracking.clients_file import write_client_names
from fednar_ray.tracking.datasets import DataSummary
from fednar_ray.tracking.file_writes import raise_as_run_failed
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_views import RUNS_KEY, RunView
from fednar_ray.tracking.tags import KIND_TAG, PRIMARY_TAG, TRAINING
from fednar_ray.tracking.tracker import RunTracker
from fednar_ray.tracking.ui_url import build_run_url

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
    for summary in _summarize_data(federation, data_digest, training=prepared.experiment.privacy is None):
        tracker.log_data(summary)
    tracker.log_experiment(prepared.experiment)
    log_client_names(prepared, tracker, directory)


def log_client_names(prepared: Prepared, tracker: RunTracker, directory: Path) -> None:
    """Writes and logs the clients' names, unless the run has them: runs that earlier versions started do not."""
    if prepared.privacy is None and not RunDirectory(directory).clients.exists():
        written = write_client_names(directory, prepared.federation.client_names)
        if written is not None:
            tracker.log_file(written)


def _summarize_data(federation: FederatedData, digest: str, *, training: bool) -> Iterator[DataSummary]:
    """Yields the training data, which the digest identifies, and the held-out data of each split.

    Args:
        federation: The data.
        digest: Of the clients' examples.
        training: Whether the training data may be summarized: the number of private examples is private.
    """
    splits = {**({TRAINING: federation.shards.examples} if training else {}), **federation.splits()}
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
) -> None:
    """Logs the journal, the excluded clients and the model. Raises RunFailed if the disk is full."""
    files, names = RunDirectory(directory), prepared.federation.client_names
    tracker.log_file(files.journal)
    _log_excluded_clients(tracker, history, files.excluded_clients_table.name, names)
    if prepared.examples is not None:
        rows = prepared.examples.tabulate(history[-1].round_index + 1, names)
        tracker.log_table(rows, files.silo_privacy_table.name)
    preprocessing = prepared.federation.preprocessing
    schema = _complete_schema(prepared, preprocessing.schema) if isinstance(preprocessing, TablePreprocessing) else None
    tracker.save_model(model, prepared.federation.build_example(), schema)
    if schema is not None:
        with raise_as_run_failed(files.schema):
            schema.write(files.schema)
    _save_parameters(model, files.parameters)


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


def _complete_schema(prepared: Prepared, schema: TableSchema | None) -> TableSchema | None:
    """Adds the sizes that the network was built with, with which ``fednar predict`` builds it again."""
    if schema is None:
        return None
    (inputs,) = prepared.federation.shards.examples.x.shape[1:]
    outputs = count_outputs(prepared.federation, prepared.experiment.model)
    return replace(schema, network_inputs=inputs, network_outputs=outputs)


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


def log_page(
    prepared: Prepared,
    tracker: RunTracker,
    directory: Path,
    history: Sequence[RoundRecord],
    facts: RunFacts,
    alerts: Sequence[Alert],
) -> None:
    """Writes and logs a run's page, and a picture of its curves."""
    files, measure = RunDirectory(directory), find_measure(history, prepared.primary)

    def write_page(path: Path) -> None:
        page = build_run_page(
            directory.name,
            history,
            facts,
            experiment=prepared.experiment,
            primary=prepared.primary,
            client_names=prepared.federation.client_names if prepared.privacy is None else (),
            alerts=alerts,
            url=build_run_url(tracker.uri, tracker.run_id),
        )
        path.write_text(page, encoding="utf-8")

    log_optional_file(tracker, lambda path: draw_curves(history, path, measure.name), files.curves_plot)
    log_optional_file(tracker, write_page, files.report)


def log_optional_file(tracker: RunTracker, write: Callable[[Path], object], path: Path) -> None:
    """Writes a file and logs it. One that cannot be written is warned about: the run does without it."""
    try:
        write(path)
    except OSError as error:
        log.warning("%s was not written: %s", path, error.strerror or error)
        with suppress(OSError):
            path.unlink()  # half a file
    else:
        tracker.log_file(path)


def _save_parameters(model: nn.Module, path: Path) -> None:
    try:
        with raise_as_run_failed(path):
            torch.save(model.state_dict(), path)
    except RuntimeError as error:  # torch's own, for a file that it cannot write
        raise RunFailed(f"{path} cannot be written: {first_line(error)}") from error
