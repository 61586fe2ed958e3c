"""Sends a run directory to MLflow, one call after another. Repeating a call has no effect."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS
from sqlalchemy.exc import IntegrityError

from fednar_ray.core.errors import BadInput, first_line
from fednar_ray.tracking.arrival import (
    WITNESS,
    NotAnswered,
    find_first_missing,
    find_first_not_arrived,
    list_rounds,
    read_run,
)
from fednar_ray.tracking.datasets import CONTEXT_TAG, TRAINING
from fednar_ray.tracking.inside import resolve_inside
from fednar_ray.tracking.json_lines import JsonLines
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.notes import insert_ids
from fednar_ray.tracking.outbox import Operation, Outbox
from fednar_ray.tracking.tags import (
    END_TAG,
    KIND_TAG,
    NOTE_TAG,
    PARENT_TAG,
    PRIMARY_TAG,
    RUN_NAME_TAG,
    SEARCH_TAG,
    WRITTEN_NOTE_TAG,
)

log = logging.getLogger("fednar_ray")

METRICS_PER_CALL = 1000  # MLflow's limit of metrics per call
MODEL_NAME = "model"
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
FIXED_BY_CREDENTIALS = (401, 403, 407)  # HTTP statuses
FIXED_BY_WAITING = (408, 425, 429)
NOT_MLFLOW = (404, 405, 410)  # sent by a proxy or by another program
CONFIRM_EVERY_ROUNDS = 100


class Delivery:
    """Sends the contents of an outbox and a journal to one MLflow run. Only one thread may call ``step``.

    Rounds are sent before operations, because the operations at the end of a run depend on them. Something that was
    sent stays owed until MLflow confirms that it has arrived, since another program may answer at its address.

    Args:
        connect: Returns the client, and may contact the store.
        run_id: The MLflow run.
        directory: The run directory, which the paths in the outbox are relative to.
        outbox: The operations to send.
        ask: Whether to ask MLflow first which rounds it has, for a directory that may know less than MLflow.
    """

    def __init__(
        self, connect: Callable[[], MlflowClient], run_id: str, directory: Path, outbox: Outbox, *, ask: bool = False
    ) -> None:
        self._connect, self._run_id, self._directory = connect, run_id, directory
        self._outbox, self._ask = outbox, ask
        self._refusals: set[str] = set()
        self._sent_rounds = outbox.sent_rounds  # of these, the first outbox.sent_rounds are confirmed
        self._sent: list[Operation | None] = []  # sent but not confirmed; None: refused, or damaged
        self._refused_rounds: set[int] = set()
        self.rounds: JsonLines | None = None  # of the journal, once there is one
        self.behind = False  # whether the last batch of rounds was full
        self.in_doubt = False  # whether something was missing when MLflow was last asked
        self.delivered_operations = self.delivered_rounds = 0

    @property
    def owed_operations(self) -> int:
        """Number of operations that MLflow has not confirmed."""
        return len(self._outbox.pending)

    @property
    def owed_rounds(self) -> int:
        """Number of rounds that MLflow has not confirmed."""
        return max(0, len(self.rounds) - self._outbox.sent_rounds) if self.rounds is not None else 0

    @property
    def owes(self) -> bool:
        """Whether MLflow has not confirmed everything. Any thread may ask."""
        return bool(self.owed_operations or self.owed_rounds)

    @property
    def unsent_operations(self) -> int:
        """Number of operations to send, or to send again."""
        return len(self._outbox.pending) - len(self._sent)

    @property
    def unsent_rounds(self) -> int:
        """Number of rounds to send, or to send again."""
        return max(0, len(self.rounds) - self._sent_rounds) if self.rounds is not None else 0

    @property
    def due(self) -> bool:
        """Whether there is something to do before the end of the run: to send, or to ask for a confirmation.

        Asking takes time in proportion to all rounds, so it is done each time their number has doubled.
        """
        unconfirmed = self._sent_rounds - self._outbox.sent_rounds
        many = unconfirmed >= max(CONFIRM_EVERY_ROUNDS, self._outbox.sent_rounds)
        return bool(self.unsent_operations or self.unsent_rounds) or self.in_doubt or many

    def count_bytes_of_next_step(self) -> int:
        """Returns the size of the files that the next ``step`` uploads."""
        if self.unsent_rounds or not self.unsent_operations:
            return 0
        operation, _ = self._outbox.pending[len(self._sent)]
        size = 0
        if operation is not None and "path" in operation:
            with suppress(OSError, BadInput):
                path = resolve_inside(self._directory, operation["path"])
                size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        return size

    def step(self) -> None:
        """Sends a batch of rounds; if there is none, sends an operation; if there is none, asks for a confirmation.

        What MLflow refuses is skipped with a warning.

        Raises:
            NotAnswered: Something that was sent is missing. It stays owed.
            Exception: Whatever MLflow and its storage raise when they do not answer. Everything stays owed.
        """
        client = self._connect()
        if self._ask:
            with self._skip_if_refused("which rounds it has"):
                self._ask_for_rounds(client)
            self._ask = False
        if self.unsent_rounds:
            self._send_rounds(client)
        elif self.unsent_operations:
            self._send_operation(client)
        else:
            self._confirm(client)

    @contextmanager
    def _skip_if_refused(self, what: str) -> Iterator[list[str]]:
        """Yields a list that holds the reason afterwards if MLflow refused the block, and is empty otherwise."""
        reasons: list[str] = []
        try:
            yield reasons
        except Exception as error:
            if not is_refusal(error):
                raise
            reasons.append(first_line(error))
            if reasons[0] not in self._refusals:
                log.warning("MLflow refuses a part of run %s (%s), which remains in %s: %s",
                            self._run_id, what, self._directory, reasons[0])  # fmt: skip
            self._refusals.add(reasons[0])

    def _ask_for_rounds(self, client: MlflowClient) -> None:
        read_run(client, self._run_id)
        there = list_rounds(client, self._run_id)
        self._sent_rounds = next(index for index in count() if index not in there)
        self._outbox.acknowledge(operations=0, rounds=self._sent_rounds)

    def _send_rounds(self, client: MlflowClient) -> None:
        assert self.rounds is not None
        first = stop = self._sent_rounds
        batch: list[Metric] = []
        for line in self.rounds.read(first, min(len(self.rounds), first + METRICS_PER_CALL)):
            metrics = _parse_metrics(line)
            self.behind = bool(batch) and len(batch) + len(metrics) > METRICS_PER_CALL
            if self.behind:
                break
            batch, stop = batch + metrics, stop + 1
        with self._skip_if_refused(f"rounds {first} to {stop - 1}") as reasons:
            client.log_batch(self._run_id, metrics=batch)
        if reasons:
            self._refused_rounds |= set(range(first, stop))
        self._sent_rounds = stop

    def _send_operation(self, client: MlflowClient) -> None:
        operation, _ = self._outbox.pending[len(self._sent)]
        if operation is None:
            log.warning("%s: a line of the outbox is damaged and is not sent", self._directory)
            self._sent.append(None)
            return
        with self._skip_if_refused(operation["kind"]) as reasons:
            self._send(client, operation)
        self._sent.append(None if reasons else operation)

    def _confirm(self, client: MlflowClient) -> None:
        """Asks MLflow for what was sent. Raises NotAnswered if something is missing, which is sent again later."""
        rounds, sent = self._sent_rounds, len(self._sent)
        with self._skip_if_refused("what it has"):
            self.in_doubt = True
            self._check_arrival(client)
        self.in_doubt = False
        self.delivered_operations += sum(operation is not None for operation in self._sent)
        arrived = range(self._outbox.sent_rounds, rounds)
        self.delivered_rounds += sum(index not in self._refused_rounds for index in arrived)
        self._sent.clear()
        self._outbox.acknowledge(operations=sent, rounds=max(rounds, self._outbox.sent_rounds))

    def _check_arrival(self, client: MlflowClient) -> None:
        run = read_run(client, self._run_id)
        sent = [index for index in range(self._outbox.sent_rounds, self._sent_rounds)
                if index not in self._refused_rounds and self._has_witness(index)]  # fmt: skip
        missing = find_first_missing(sent, list_rounds(client, self._run_id) if sent else set())
        if missing is not None:
            self._sent_rounds = missing
            raise NotAnswered(f"it took round {missing} of run {self._run_id} and does not have it")
        index = find_first_not_arrived(client, run, self._sent)
        if index is not None:
            operation = self._sent[index]
            del self._sent[index:]
            kind = None if operation is None else operation["kind"]
            raise NotAnswered(f"it took a part of run {self._run_id} ({kind}) and does not have it")

    def _has_witness(self, index: int) -> bool:
        assert self.rounds is not None
        (line,) = self.rounds.read(index, index + 1)
        return json.loads(line)["metrics"].get(WITNESS) is not None

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
                client.log_inputs(run_id, [_build_dataset(operation)])
            case "note":
                self._send_note(client, operation)
            case "view":
                client.set_experiment_tag(
                    read_run(client, run_id).info.experiment_id, operation["tag"], operation["value"]
                )
            case "file":
                self._send_file(client, operation)
            case "table":
                self._send_file(client, operation)
                _mark_table(client, run_id, operation["path"])
            case "model":
                self._send_model(client, self._find_path(operation))
            case "model of":
                self._link_model(client, operation["run_id"])
            case "resumed":
                if END_TAG in client.get_run(run_id).data.tags:
                    client.delete_tag(run_id, END_TAG)
                client.update_run(run_id, status="RUNNING")
            case "end":
                client.set_terminated(run_id, operation["status"], operation["time"])

    def _send_file(self, client: MlflowClient, operation: Operation) -> None:
        """Uploads a file, if it is MLflow that answers: its client keeps the first place that it is told for a run."""
        read_run(client, self._run_id)
        client.log_artifact(self._run_id, self._find_path(operation))

    def _send_note(self, client: MlflowClient, operation: Operation) -> None:
        """Sets the note of the run, and that of its experiment unless somebody has edited it."""
        experiment_id = read_run(client, self._run_id).info.experiment_id
        text, experiment_text = (
            insert_ids(operation[name], experiment_id, self._run_id) for name in ("text", "experiment_text")
        )
        client.set_tag(self._run_id, NOTE_TAG, text)
        tags = client.get_experiment(experiment_id).tags if experiment_text else {}
        if experiment_text and tags.get(NOTE_TAG) == tags.get(WRITTEN_NOTE_TAG):
            for tag in (WRITTEN_NOTE_TAG, NOTE_TAG):
                client.set_experiment_tag(experiment_id, tag, experiment_text)

    def _link_model(self, client: MlflowClient, run_id: str) -> None:
        """Links the model of another run to this run, too."""
        own, other = (read_run(client, each).outputs for each in (self._run_id, run_id))
        linked = {output.model_id for output in own.model_outputs} if own else set()
        found = [output for output in (other.model_outputs if other else ()) if output.model_id not in linked]
        if found:
            client.log_outputs(self._run_id, found)

    def _find_path(self, operation: Operation) -> Path:
        """Returns the file of an operation. Raises FileNotFoundError if it does not exist or lies outside the run."""
        try:
            path = resolve_inside(self._directory, operation["path"])
        except BadInput as reason:
            raise FileNotFoundError(str(reason)) from None
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        return path

    def _send_model(self, client: MlflowClient, directory: Path) -> None:
        """Sends the saved model as a LoggedModel of the run. One that an earlier attempt created is used again."""
        run = read_run(client, self._run_id)
        experiment = run.info.experiment_id
        made = client.search_logged_models([experiment], f"source_run_id = '{self._run_id}' AND name = '{MODEL_NAME}'")
        model = (
            made[0]
            if made
            else client.create_logged_model(
                experiment, MODEL_NAME, self._run_id, _choose_model_tags(run), run.data.params
            )
        )
        if not model.model_id:
            raise NotAnswered(f"asked for a model of run {self._run_id}, it answered with one without an id")
        linked = run.outputs.model_outputs if run.outputs else []
        last = self.rounds.read(len(self.rounds) - 1, len(self.rounds)) if self.rounds else ()
        if model.model_id not in [output.model_id for output in linked]:
            step = json.loads(last[0])["round"] if last else 0
            client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step)])
        for line in last:
            client.log_batch(self._run_id, metrics=_link_metrics(_parse_metrics(line), run, model.model_id))
        _write_ids(directory, model.model_id, self._run_id, model.artifact_location)
        client.log_model_artifacts(model.model_id, str(directory))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _parse_metrics(line: str) -> list[Metric]:
    """Returns the metrics in a line of the journal, without those that are not finite."""
    fields = json.loads(line)
    finite = ((name, value) for name, value in fields["metrics"].items() if value is not None)
    return [Metric(name_in_mlflow(name), value, fields["time"], fields["round"]) for name, value in finite]


def _choose_model_tags(run: Run) -> dict[str, str]:
    """Returns the tags of a run's model: the run's name, and what it belongs to."""
    tags = {tag: run.data.tags[tag] for tag in (PARENT_TAG, SEARCH_TAG, KIND_TAG, PRIMARY_TAG) if tag in run.data.tags}
    return {RUN_NAME_TAG: run.info.run_name, **tags}


def _link_metrics(metrics: Sequence[Metric], run: Run, model_id: str) -> list[Metric]:
    """Returns metrics as those of a model, and of the data set that they were measured on, if the run has it."""
    data = {
        tag.value: {"dataset_name": each.dataset.name, "dataset_digest": each.dataset.digest}
        for each in (run.inputs.dataset_inputs if run.inputs else ())
        for tag in each.tags
        if tag.key == CONTEXT_TAG
    }
    of_split = (data.get(metric.key.rpartition("/")[2].replace("train", TRAINING), {}) for metric in metrics)
    return [
        Metric(each.key, each.value, each.timestamp, each.step, model_id=model_id, **about)
        for each, about in zip(metrics, of_split, strict=True)
    ]


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


def _write_ids(directory: Path, model_id: str, run_id: str, location: str) -> None:
    """Writes the ids of the model and the run into the description of a saved model."""
    description = _description(directory / "MLmodel")
    if description.model_id != model_id:
        description.model_id = description.model_uuid = model_id
        description.run_id, description.artifact_path = run_id, location
        description.save(str(directory / "MLmodel.new"))
        os.replace(directory / "MLmodel.new", directory / "MLmodel")


def _description(path: Path) -> Model:
    """Reads the description of a saved model. MLflow's own reader would decode percent signs in the path.

    Raises:
        FileNotFoundError: There is no description, or it is damaged.
    """
    try:
        return Model.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise FileNotFoundError(f"{path} is damaged: {error}") from error


def is_refusal(error: Exception) -> bool:
    """Returns whether neither another attempt nor other credentials can help against an error.

    Over HTTP only an error in MLflow's own form is a refusal; that of a proxy is not. A database refuses what
    contradicts its constraints, such as a second value for the same metric, step and time.
    """
    if isinstance(error.__cause__, IntegrityError):
        return True
    status = getattr(getattr(error, "response", None), "status_code", 0)  # of an upload over HTTP
    if 400 <= status < 500:
        return status not in (*FIXED_BY_CREDENTIALS, *FIXED_BY_WAITING, *NOT_MLFLOW)
    if isinstance(error, MlflowException) and "API request to endpoint" in str(error):
        return False
    return isinstance(error, FileNotFoundError) or (isinstance(error, MlflowException) and error.error_code in REFUSALS)
