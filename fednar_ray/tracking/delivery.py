"""From a run directory to MLflow, one call after another. All of it may be sent twice without effect."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from fednar_ray.tracking.lines import Lines
from fednar_ray.tracking.outbox import Operation, Outbox

log = logging.getLogger("fednar_ray")

METRICS_A_CALL = 1000  # MLflow's limit
WITNESS = "clients_trained"  # finite in every round: its history says which rounds MLflow has
MODEL_NAME = "model"
END_TAG = "fednar.end"  # why a run ended early
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
MENDABLE_BY_USER = (401, 403, 407)  # HTTP: credentials may come
MENDABLE_BY_TIME = (408, 425, 429)


class Delivery:
    """Sends what an outbox and a journal owe to one MLflow run; one thread calls ``step``, any may ask ``owes``.

    Rounds go before operations, since those of a run's end build on them.  ``ask`` first asks MLflow which rounds
    it has, for a run whose directory may know less.
    """

    def __init__(
        self, connect: Callable[[], MlflowClient], run_id: str, directory: Path, outbox: Outbox, *, ask: bool = False
    ) -> None:
        self._connect, self._run_id, self._directory = connect, run_id, directory
        self._outbox, self._ask = outbox, ask
        self._refusals: set[str] = set()
        self.rounds: Lines | None = None  # the journal's, once there is one
        self.behind = False  # the last batch of rounds was full
        self.delivered_operations = self.delivered_rounds = 0

    @property
    def owed_operations(self) -> int:
        """How many are yet to be sent."""
        return len(self._outbox.pending)

    @property
    def owed_rounds(self) -> int:
        """How many are yet to be sent."""
        return max(0, len(self.rounds) - self._outbox.sent_rounds) if self.rounds is not None else 0

    @property
    def owes(self) -> bool:
        """Whether anything is yet to be sent."""
        return bool(self.owed_operations or self.owed_rounds)

    def bytes_of_next_step(self) -> int:
        """The size of the files that it uploads."""
        if self.owed_rounds or not self.owed_operations:
            return 0
        operation, _ = self._outbox.pending[0]
        size = 0
        if "path" in operation:
            path = self._directory / operation["path"]
            with suppress(OSError):
                size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        return size

    def step(self) -> None:
        """Send a batch of rounds, or where none are owed an operation. What MLflow refuses is warned about and skipped.

        Raises whatever MLflow and its storage raise where they do not answer; what is owed stays owed then.
        """
        client = self._connect()
        if self._ask:
            with self._or_skip("which rounds it has"):
                self._ask_for_rounds(client)
            self._ask = False
        if self.owed_rounds:
            self._send_rounds(client)
        elif self.owed_operations:
            operation, _ = self._outbox.pending[0]
            with self._or_skip(operation["kind"]):
                self._send(client, operation)
                self.delivered_operations += 1
            self._outbox.acknowledge_operation()

    @contextmanager
    def _or_skip(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not refused(error):
                raise
            reason = reason_of(error)
            if reason not in self._refusals:
                log.warning("MLflow refuses a part of run %s (%s), which stays in %s: %s",
                            self._run_id, what, self._directory, reason)  # fmt: skip
            self._refusals.add(reason)

    def _ask_for_rounds(self, client: MlflowClient) -> None:
        steps = [point.step for point in client.get_metric_history(self._run_id, WITNESS)]
        if steps and max(steps) >= self._outbox.sent_rounds:
            self._outbox.acknowledge_rounds(max(steps) + 1)  # they are sent in order

    def _send_rounds(self, client: MlflowClient) -> None:
        assert self.rounds is not None
        first = stop = self._outbox.sent_rounds
        batch: list[Metric] = []
        for line in self.rounds.read(first, min(len(self.rounds), first + METRICS_A_CALL)):
            metrics = _metrics_of(line)
            self.behind = bool(batch) and len(batch) + len(metrics) > METRICS_A_CALL
            if self.behind:
                break
            batch, stop = batch + metrics, stop + 1
        with self._or_skip(f"rounds {first} to {stop - 1}"):
            client.log_batch(self._run_id, metrics=batch)
            self.delivered_rounds += stop - first
        self._outbox.acknowledge_rounds(stop)

    def _send(self, client: MlflowClient, operation: Operation) -> None:
        run_id = self._run_id
        match operation["kind"]:
            case "params":
                client.log_batch(run_id, params=[Param(key, value) for key, value in operation["params"].items()])
            case "tags":
                client.log_batch(run_id, tags=[RunTag(key, value) for key, value in operation["tags"].items()])
            case "metrics":
                time, step = operation["time"], operation["step"]
                metrics = [Metric(key, value, time, step) for key, value in operation["metrics"].items()]
                client.log_batch(run_id, metrics=metrics)
            case "data":
                client.log_inputs(run_id, [_dataset(operation)])
            case "file":
                client.log_artifact(run_id, self._directory / operation["path"])
            case "table":
                client.log_artifact(run_id, self._directory / operation["path"])
                _mark_table(client, run_id, operation["path"])
            case "model":
                self._send_model(client, self._directory / operation["path"])
            case "resumed":
                if END_TAG in client.get_run(run_id).data.tags:
                    client.delete_tag(run_id, END_TAG)
                client.update_run(run_id, status="RUNNING")
            case "end":
                client.set_terminated(run_id, operation["status"], operation["time"])

    def _send_model(self, client: MlflowClient, directory: Path) -> None:
        """The saved model as a LoggedModel of the run; one that an earlier attempt made is filled."""
        run = client.get_run(self._run_id)
        experiment = run.info.experiment_id
        made = client.search_logged_models([experiment], f"source_run_id = '{self._run_id}' AND name = '{MODEL_NAME}'")
        model = (
            made[0] if made else client.create_logged_model(experiment, MODEL_NAME, self._run_id, None, run.data.params)
        )
        linked = run.outputs.model_outputs if run.outputs else []
        last = self.rounds.read(len(self.rounds) - 1, len(self.rounds)) if self.rounds else ()
        if model.model_id not in [output.model_id for output in linked]:
            step = json.loads(last[0])["round"] if last else 0
            client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step)])
        for line in last:
            client.log_batch(self._run_id, metrics=_metrics_of(line, model_id=model.model_id))
        _sign(directory, model.model_id, self._run_id, model.artifact_location)
        client.log_model_artifacts(model.model_id, str(directory))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _metrics_of(line: str, **about: Any) -> list[Metric]:
    """A line of the journal as MLflow takes it; values that are not finite are left out."""
    fields = json.loads(line)
    finite = ((name, value) for name, value in fields["metrics"].items() if value is not None)
    return [Metric(name, value, fields["time"], fields["round"], **about) for name, value in finite]


def _dataset(operation: Operation) -> DatasetInput:
    source = json.dumps({"name": operation["name"]})
    entity = Dataset(operation["name"], operation["digest"], "code", source, None, json.dumps(operation["profile"]))
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def _mark_table(client: MlflowClient, run_id: str, path: str) -> None:
    """Say that an artifact is a table, so that MLflow's UI shows it as one."""
    tables = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": path, "type": "table"}
    if entry not in tables:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*tables, entry]))


def _sign(directory: Path, model_id: str, run_id: str, location: str) -> None:
    """Put into a saved model's description what MLflow knows it by."""
    description = Model.load(str(directory))
    if description.model_id != model_id:
        description.model_id = description.model_uuid = model_id
        description.run_id, description.artifact_path = run_id, location
        description.save(str(directory / "MLmodel.new"))
        os.replace(directory / "MLmodel.new", directory / "MLmodel")


def refused(error: Exception) -> bool:
    """Whether trying again cannot mend an error, and neither can other credentials."""
    status = getattr(getattr(error, "response", None), "status_code", 0)  # of an upload over HTTP
    if 400 <= status < 500:
        return status not in (*MENDABLE_BY_USER, *MENDABLE_BY_TIME)
    return isinstance(error, FileNotFoundError) or (isinstance(error, MlflowException) and error.error_code in REFUSALS)


def reason_of(error: Exception) -> str:
    """The first line of an error, for a message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
