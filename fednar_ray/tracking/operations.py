"""Sends one operation of an outbox to MLflow. Repeating it has no effect."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.arrival import open_artifacts, read_run
from fednar_ray.tracking.batch import Batch
from fednar_ray.tracking.inside import resolve_inside
from fednar_ray.tracking.logged_model import send_model
from fednar_ray.tracking.notes import insert_ids
from fednar_ray.tracking.outbox import Operation
from fednar_ray.tracking.tags import CONTEXT_TAG, END_TAG, NOTE_TAG, RANK_TAG, WRITTEN_NOTE_TAG


def send_operation(
    client: MlflowClient, run_id: str, directory: Path, operation: Operation, read_last_round: Callable[[], str | None]
) -> None:
    """Sends an operation to an MLflow run.

    Args:
        client: MLflow's client.
        run_id: The MLflow run.
        directory: The run directory, which the paths in operations are relative to.
        operation: What to send.
        read_last_round: Returns the last line of the journal, whose metrics become those of a model.

    Raises:
        FileNotFoundError: The file of the operation does not exist, or lies outside of the directory.
    """
    match operation["kind"]:
        case "params" | "tags" | "metrics":
            Batch.of(operation).send(client, run_id)
        case "data":
            client.log_inputs(run_id, [_build_dataset(operation)])
        case "note":
            _send_note(client, run_id, operation)
        case "view":
            client.set_experiment_tag(read_run(client, run_id).info.experiment_id, operation["tag"], operation["value"])
        case "file":
            _send_file(client, run_id, _find_file(directory, operation))
        case "table":
            _send_file(client, run_id, _find_file(directory, operation))
            _mark_table(client, run_id, operation["path"])
        case "model":
            send_model(client, run_id, _find_file(directory, operation), read_last_round())
        case "model of":
            _link_model(client, run_id, operation["run_id"])
        case "rank":
            client.set_tag(operation["run_id"], RANK_TAG, operation["rank"])
        case "resumed":
            if END_TAG in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, END_TAG)
            client.update_run(run_id, status="RUNNING")
        case "end":
            client.set_terminated(run_id, operation["status"], operation["time"])


def _send_file(client: MlflowClient, run_id: str, path: Path) -> None:
    open_artifacts(client, read_run(client, run_id).info.artifact_uri).log_artifact(str(path))


def _send_note(client: MlflowClient, run_id: str, operation: Operation) -> None:
    """Sets the note of the run, and that of its experiment unless somebody has edited it."""
    experiment_id = read_run(client, run_id).info.experiment_id
    text, experiment_text = (insert_ids(operation[name], experiment_id, run_id) for name in ("text", "experiment_text"))
    client.set_tag(run_id, NOTE_TAG, text)
    tags = client.get_experiment(experiment_id).tags if experiment_text else {}
    if experiment_text and tags.get(NOTE_TAG) == tags.get(WRITTEN_NOTE_TAG):
        for tag in (WRITTEN_NOTE_TAG, NOTE_TAG):
            client.set_experiment_tag(experiment_id, tag, experiment_text)


def _link_model(client: MlflowClient, run_id: str, other_id: str) -> None:
    """Links the model of another run to this run, too."""
    own, other = (read_run(client, each).outputs for each in (run_id, other_id))
    linked = {output.model_id for output in own.model_outputs} if own else set()
    found = [output for output in (other.model_outputs if other else ()) if output.model_id not in linked]
    if found:
        client.log_outputs(run_id, found)


def _find_file(directory: Path, operation: Operation) -> Path:
    """Returns the file of an operation. Raises FileNotFoundError if it does not exist or lies outside the run."""
    try:
        path = resolve_inside(directory, operation["path"])
    except BadInput as reason:
        raise FileNotFoundError(str(reason)) from None
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def measure_upload(directory: Path, operation: Operation) -> int:
    """Returns the size in bytes of the files that sending an operation uploads."""
    if "path" not in operation:
        return 0
    with suppress(OSError, BadInput):
        path = resolve_inside(directory, operation["path"])
        return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return 0


def _build_dataset(operation: Operation) -> DatasetInput:
    source = json.dumps({"name": operation["name"]})
    entity = Dataset(
        operation["name"], operation["digest"], "code", source, operation["schema"], json.dumps(operation["profile"])
    )
    return DatasetInput(entity, [InputTag(CONTEXT_TAG, operation["context"])])


def _mark_table(client: MlflowClient, run_id: str, path: str) -> None:
    """Marks an artifact as a table, so that the MLflow UI shows it as one."""
    tables = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": path, "type": "table"}
    if entry not in tables:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*tables, entry]))
