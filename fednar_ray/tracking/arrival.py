"""Checks whether MLflow has what was sent to it, and whether it is MLflow that answers.

A proxy, or another program at the address, may answer every call with status 200 and unrelated content.
"""

import json
from collections.abc import Iterable, Sequence

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fednar_ray.core.errors import first_line
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.outbox import Operation
from fednar_ray.tracking.tags import END_TAG, NOTE_TAG

WITNESSES = ("clients_trained", "privacy/bound")
"""Metrics of which each run has one, finite in every round, so that its history tells which rounds MLflow has."""
BY_THE_SERVER = ("mlflow-artifacts:", "http:", "https:")  # artifact locations behind the tracking server
NOT_JSON = "not in a valid JSON format"  # in MLflow's own message


class NotAnswered(Exception):
    """An answer that MLflow would not give, or that shows that something sent has not arrived."""


def describe_failure(uri: str, error: Exception) -> str:
    """Returns a message that says what is wrong with the store at ``uri``."""
    foreign = (
        isinstance(error, NotAnswered | json.JSONDecodeError)
        or NOT_JSON in str(error)
        or type(error).__module__.startswith("google.protobuf")  # JSON of another form than requested
    )
    if foreign and uri.startswith("http"):
        return f"{uri} answers, but not as an MLflow server: {first_line(error)}"
    return f"MLflow at {uri} does not answer: {first_line(error)}"


def read_run(client: MlflowClient, run_id: str) -> Run:
    """Returns the run of that id. Raises NotAnswered if the answer is about another run, or about none."""
    run = client.get_run(run_id)
    if run.info.run_id != run_id:
        raise NotAnswered(f"asked for run {run_id}, it answered with {run.info.run_id!r}")
    return run


def open_artifacts(client: MlflowClient, location: str | None) -> ArtifactRepository:
    """Returns the files at the artifact location of a run or a model, which MLflow gave in a checked answer.

    MLflow's client would ask for the location itself, and keep the first answer, even one of another program. Files
    would then go to the current directory, or be refused for good.

    Raises:
        NotAnswered: The answer had no location.
    """
    if not location:
        raise NotAnswered("it answered with a run or a model that has no place for files")
    return get_artifact_repository(location, tracking_uri=client.tracking_uri)


def list_rounds(client: MlflowClient, run: Run) -> set[int]:
    """Returns the indices of the rounds of a run that MLflow has."""
    names = [name_in_mlflow(name) for name in WITNESSES]
    witness = next((name for name in names if name in run.data.metrics), names[0])
    return {point.step for point in client.get_metric_history(run.info.run_id, witness)}


def find_first_missing(rounds: Iterable[int], there: set[int]) -> int | None:
    """Returns the first of ``rounds`` that is not in ``there``; None if none is missing."""
    return next((index for index in rounds if index not in there), None)


def find_first_not_arrived(client: MlflowClient, run: Run, operations: Sequence[Operation | None]) -> int | None:
    """Returns the index of the first operation that MLflow does not have; None if it has all of them.

    An operation that is None need not arrive. Only the existence of tags, parameters and files is checked, not their
    content, which somebody may have changed since.
    """
    files = _list_files(client, run, operations)
    resumed = any(operation is not None and operation["kind"] == "resumed" for operation in operations)
    for index, operation in enumerate(operations):
        if operation is None or (resumed and operation["kind"] == "end"):
            continue
        if not _has(client, run, files, operation):
            return index
    return None


def _list_files(client: MlflowClient, run: Run, operations: Iterable[Operation | None]) -> set[str] | None:
    """Returns the names of the run's artifacts; None if none were sent, or the tracking server does not store them."""
    sent = any(operation is not None and operation["kind"] in ("file", "table") for operation in operations)
    location = run.info.artifact_uri or ""
    if not sent or not location.startswith(BY_THE_SERVER):
        return None
    return {file.path for file in open_artifacts(client, location).list_artifacts()}


def _has(client: MlflowClient, run: Run, files: set[str] | None, operation: Operation) -> bool:
    match operation["kind"]:
        case "params":
            return set(operation["params"]) <= set(run.data.params)
        case "tags":
            return set(operation["tags"]) - {END_TAG} <= set(run.data.tags)  # a resumed run deletes that one
        case "note":
            return NOTE_TAG in run.data.tags
        case "metrics":
            return set(operation["metrics"]) <= set(run.data.metrics)
        case "data":
            return run.inputs is not None and bool(run.inputs.dataset_inputs)
        case "file" | "table":
            return files is None or operation["path"].rpartition("/")[2] in files
        case "model":
            return _has_model(client, run)
        case "end":
            return bool(run.info.status) and run.info.status != "RUNNING"
    return True


def _has_model(client: MlflowClient, run: Run) -> bool:
    models = run.outputs.model_outputs if run.outputs else []
    return any(client.get_logged_model(model.model_id).status == LoggedModelStatus.READY for model in models)
