"""What a run logs besides its rounds: parameters and data at its start; the model and its page at its end."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fednar_ray.config import flatten_settings
from fednar_ray.core.client_names import ClientNames, are_named, name_client
from fednar_ray.core.errors import RunFailed, first_line
from fednar_ray.core.fednar_table_schema import TableSchema
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.alerts import Alert
from fednar_ray.experiments.placement import ExecutionPlan
from fednar_ray.experiments.prepare import Prepared, count_outputs
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.plots import draw_curves
from fednar_ray.report.run_page import build_run_page
from fednar_ray.report.run_plots import find_measure
from fednar_ray.tracking.clients_file import write_client_names
from fednar_ray.tracking.file_writes import raise_as_run_failed
from fednar_ray.tracking.mlflow import DataSummary, RunTracker
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.tags import PRIMARY_TAG

log = logging.getLogger("fednar_ray")


def log_inputs(prepared: Prepared, plan: ExecutionPlan, tracker: RunTracker, directory: Path, data_digest: str) -> None:
    """Logs the experiment, the data, and where clients are trained."""
    federation = prepared.federation
    tracker.log_params(flatten_settings(prepared.experiment))
    tracker.log_tags({**plan.build_tags(), PRIMARY_TAG: prepared.primary})
    examples = federation.shards.examples
    tracker.log_data(
        DataSummary(
            name=federation.name,
            digest=data_digest[:16],
            clients=federation.num_clients,
            examples=len(examples),
            input_shape=examples.x.shape[1:],
            classes=federation.classes,
        )
    )
    tracker.log_experiment(prepared.experiment)
    log_client_names(prepared, tracker, directory)


def log_client_names(prepared: Prepared, tracker: RunTracker, directory: Path) -> None:
    """Writes and logs the clients' names, unless the run has them: runs that earlier versions started do not."""
    if not RunDirectory(directory).clients.exists():
        written = write_client_names(directory, prepared.federation.client_names)
        if written is not None:
            tracker.log_file(written)


def log_outputs(
    prepared: Prepared, tracker: RunTracker, directory: Path, history: Sequence[RoundRecord], model: nn.Module
) -> None:
    """Logs the journal, the excluded clients and the model. Raises RunFailed if the disk is full."""
    files, names = RunDirectory(directory), prepared.federation.client_names
    tracker.log_file(files.journal)
    _log_excluded_clients(tracker, history, files.excluded_clients_table.name, names)
    preprocessing = prepared.federation.preprocessing
    schema = _complete_schema(prepared, preprocessing.schema) if isinstance(preprocessing, TablePreprocessing) else None
    tracker.save_model(model, prepared.federation.build_example(), schema)
    if schema is not None:
        with raise_as_run_failed(files.schema):
            schema.write(files.schema)
    _save_parameters(model, files.parameters)


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
            client_names=prepared.federation.client_names,
            alerts=alerts,
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
