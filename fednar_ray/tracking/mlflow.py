"""Reports to MLflow: one MLflow run per run, metrics with step = round, and the final model.

Only the driver reports.  What it reports is first written to the run directory, and then sent by a background thread,
so a run neither waits for MLflow nor fails with it.
"""

import hashlib
import json
import logging
import math
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
import numpy.typing as npt
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException, RestException

from fednar_ray.config import Experiment, dump
from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import BadInput, RunFailed, TrackingUnavailable, first_line
from fednar_ray.core.fednar_table_schema import TableSchema
from fednar_ray.core.metric_names import SPLITS, is_higher_better
from fednar_ray.core.stages import announce
from fednar_ray.core.store_uris import (
    build_artifact_folder,
    find_misread_folder,
    find_name_problem,
    find_sqlite_file,
    make_uri_absolute,
)
from fednar_ray.tracking.addresses import confirm
from fednar_ray.tracking.arrival import NotAnswered, describe_failure
from fednar_ray.tracking.datasets import DataSummary
from fednar_ray.tracking.delivery import Delivery
from fednar_ray.tracking.file_writes import make_directory, replace_file
from fednar_ray.tracking.identity import RUN_ID, Identity, read_identity
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.locks import lock_run_directory, wait_for_lock_file
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.models import save_model
from fednar_ray.tracking.notes import Note
from fednar_ray.tracking.origin import build_origin_tags
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_views import RunView
from fednar_ray.tracking.sender import Sender
from fednar_ray.tracking.tags import (
    ABANDONED_TAG,
    END_TAG,
    FEDNAR_VERSION_TAG,
    GIT_COMMIT_TAG,
    KIND_TAG,
    NOTE_TAG,
    PARENT_TAG,
    PRIMARY_TAG,
    SEARCH_TAG,
    WRITER_TAG,
)

log = logging.getLogger("fednar_ray")

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
HTTP_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's default takes four minutes; the sender repeats requests
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # seconds without an answer
}
LONGEST_MODEL_NAME = 256  # the width of MLflow's column
BEST_ALIAS = "best"  # of the best registered version
DESCRIBING_TAGS = (KIND_TAG, SEARCH_TAG, PARENT_TAG, PRIMARY_TAG, GIT_COMMIT_TAG, FEDNAR_VERSION_TAG)
INTERRUPTED_SECONDS = 3.0  # the longest that the end of an interrupted run may take


class Store:
    """A tracking store. Creating an instance contacts nothing.

    Args:
        uri: The address; None: the one that MLflow is set to.

    Raises:
        BadInput: The address contains a password, which would be recorded with every run.
    """

    def __init__(self, uri: str | None) -> None:
        check_address(TRACKING_VARIABLE if uri is None else "the tracking store", uri or mlflow.get_tracking_uri())
        self.uri = make_uri_absolute(uri or mlflow.get_tracking_uri())
        for name, value in HTTP_SETTINGS.items():
            os.environ.setdefault(name, value)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client. Only one process at a time opens and migrates a database."""
        with _lock_database(self.uri), _remove_stray_folders(self.uri):
            return MlflowClient(self.uri)

    def check(self) -> None:
        """Raises TrackingUnavailable if the store cannot be read, or is a folder whose name MLflow would misread."""
        folder = find_misread_folder(self.uri)
        if folder is not None:
            raise TrackingUnavailable(f"MLflow misreads the percent sign in {folder}; use a SQLite file in its place")
        with raise_as_unavailable(self.uri):
            if not self.client.search_experiments(max_results=1) and self.uri.startswith("http"):
                self._ask_for_the_default_experiment()

    def _ask_for_the_default_experiment(self) -> None:
        """Checks that MLflow answers, by its default experiment. Another server may answer with an empty list, too."""
        try:
            known = self.client.get_experiment("0").experiment_id
        except RestException:
            return
        if known != "0":
            raise NotAnswered(f"asked for experiment 0, it answered with {known!r}")

    def ensure_experiment(self, name: str) -> str:
        """Returns the id of an MLflow experiment, which is created if it is new.

        Artifacts of an experiment in a SQLite file are stored beside that file.

        Raises:
            BadInput: The name would place artifacts outside the artifact folder.
            TrackingUnavailable: The store does not answer.
        """
        problem = find_name_problem(name)
        if problem is not None:
            raise BadInput(f"{name!r} cannot be the name of an MLflow experiment: {problem}")
        with raise_as_unavailable(self.uri):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                if found.name != name:
                    raise NotAnswered(f"asked for experiment {name!r}, it answered with {found.name!r}")
                return _check_id("experiment", found.experiment_id)
            file = find_sqlite_file(self.uri)
            location = None if file is None else (file.parent / "mlruns" / build_artifact_folder(name)).as_uri()
            return _check_id("experiment", self.client.create_experiment(name, artifact_location=location))

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Creates a run, tagged with its origin too, and returns its id."""
        with raise_as_unavailable(self.uri):
            run = self.client.create_run(experiment_id, run_name=name, tags={**build_origin_tags(), **tags})
            if run.info.experiment_id != experiment_id:
                raise NotAnswered(f"asked for a run, it answered with one of experiment {run.info.experiment_id!r}")
            run_id = _check_id("run", run.info.run_id)
        confirm(self.uri)
        return run_id

    def find_last_writer(self, run_id: str) -> str | None:
        """Returns the token of the process that wrote to a run last; None if it is not known."""
        with suppress(Exception):  # a run is resumed whether or not its store answers
            writer: str | None = self.client.get_run(run_id).data.tags.get(WRITER_TAG)
            return writer
        return None

    def abandon_run(self, run_id: str) -> None:
        """Marks a run that is not continued, and ends it as KILLED if it has not ended."""
        with raise_as_unavailable(self.uri):
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, "KILLED")
            self.client.set_tag(run_id, ABANDONED_TAG, "true")

    def register_model(self, run_id: str, name: str) -> int:
        """Registers a run's model as the next version of ``name``, and returns the version.

        The version is described by the run's answer. The alias ``best`` moves to it unless its version is better.

        Args:
            run_id: MLflow's id of the run, which has one logged model.
            name: The registered model, which is created if it is new.
        """
        with raise_as_unavailable(self.uri):
            if not self._has_registered(name):
                self.client.create_registered_model(name)
            run = self.client.get_run(run_id)
            (model,) = run.outputs.model_outputs
            logged = self.client.get_logged_model(model.model_id)
            tags = {tag: run.data.tags[tag] for tag in DESCRIBING_TAGS if tag in run.data.tags}
            version = self.client.create_model_version(
                name,
                logged.artifact_location,
                run_id,
                tags=tags,
                description=_build_description(run),
                model_id=model.model_id,
            )
            if self._is_best(name, run):
                self.client.set_registered_model_alias(name, BEST_ALIAS, version.version)
        return int(version.version)

    def _is_best(self, name: str, run: Run) -> bool:
        """Returns whether a run is as good as that of the version with the alias ``best``, or there is none.

        The primary metric decides: on the validation set if both runs have one, otherwise on the test set.
        """
        current = self.client.get_registered_model(name).aliases.get(BEST_ALIAS)
        primary = run.data.tags.get(PRIMARY_TAG)
        if current is None or primary is None:
            return True
        other = self.client.get_run(self.client.get_model_version(name, current).run_id).data.metrics
        for metric in (name_in_mlflow(f"{split}_{primary}") for split in SPLITS):
            if metric in other and metric in run.data.metrics:
                better = run.data.metrics[metric] - other[metric]
                return bool(better >= 0 if is_higher_better(primary) else better <= 0)
        return True

    def check_registration(self, name: str) -> None:
        """Checks before training whether a model can be registered under a name.

        Raises:
            BadInput: MLflow does not accept the name, or the store has no model registry.
            TrackingUnavailable: The store does not answer.
        """
        self.check()
        if len(name) > LONGEST_MODEL_NAME:
            raise BadInput(f"the model's name has {len(name)} characters; MLflow accepts {LONGEST_MODEL_NAME} at most")
        try:
            self._has_registered(name)
        except Exception as error:
            wrong_name = isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"
            what = "does not accept this name" if wrong_name else "cannot register models"
            raise BadInput(f"model name {name!r}: MLflow at {self.uri} {what}: {first_line(error)}") from error

    def _has_registered(self, name: str) -> bool:
        try:
            self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def log_files(self, run_id: str, directory: Path, name: str) -> None:
        """Uploads the files of a directory as artifacts of a run, in the artifact folder ``name``."""
        with raise_as_unavailable(self.uri):
            self.client.log_artifacts(run_id, str(directory), name)


def _build_description(run: Run) -> str:
    """Returns the answer of a run, without the links of its note, which only work on the run's own page."""
    note: str = run.data.tags.get(NOTE_TAG, "")
    answer = note.partition("\n")[0]
    return "\n\n".join(filter(None, (answer, f"Run {run.info.run_name}, {run.info.run_id}")))


def _check_id(of: str, answered: object) -> str:
    if not (isinstance(answered, str) and RUN_ID.fullmatch(answered)):
        raise NotAnswered(f"asked for the id of a new {of}, it answered with {answered!r}")
    return answered


@contextmanager
def _lock_database(uri: str) -> Iterator[None]:
    """Lets only one process at a time open a database, since simultaneous migrations by MLflow fail."""
    name = f"fednar-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    with ExitStack() as stack:
        with suppress(OSError):  # another user's file, or a file system without locks
            stack.enter_context(wait_for_lock_file(Path(tempfile.gettempdir()) / name))
        yield


@contextmanager
def _remove_stray_folders(uri: str) -> Iterator[None]:
    """Removes the folder that MLflow creates for a SQLite file because it does not decode percent-encoded paths."""
    file = find_sqlite_file(uri)
    folder = Path(uri.partition(":///")[2].partition("?")[0]).parent
    made = [] if file is None or file.parent == folder else [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # it is not there, or not empty
            for stray in made:
                stray.rmdir()


@contextmanager
def raise_as_unavailable(uri: str) -> Iterator[None]:
    """Turns every exception of a store, including those of SQLAlchemy and requests, into TrackingUnavailable."""
    try:
        yield
    except Exception as error:
        raise TrackingUnavailable(describe_failure(uri, error)) from error


class RunTracker(RoundCallback):
    """One MLflow run, which is ended as FINISHED, FAILED or KILLED.

    Everything that is logged is written to ``directory`` before it is sent.  What MLflow has not received by the end
    can be sent with ``fednar sync``.  Logging raises RunFailed if the disk of the directory is full, and never
    because of MLflow.

    Args:
        store: The tracking store of the run.
        run_id: MLflow's id of the run, which exists.
        directory: The run directory. Starting raises BadInput if another process writes it.
        resumed: The run was recorded in this MLflow run before. Its outbox is continued, and no round that MLflow has
            is sent again.
        copied: The run was recorded before as another MLflow run. Everything recorded so far is sent to this one too.
        parent_id: The MLflow run of the comparison or search that a new run belongs to.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        directory: Path,
        *,
        resumed: bool = False,
        copied: bool = False,
        parent_id: str | None = None,
    ) -> None:
        self.run_id, self._parent_id = run_id, parent_id
        self._store, self._directory, self._resumed, self._copied = store, directory, resumed, copied
        self._held = ExitStack()
        self._ends_as = "FINISHED"

    @property
    def uri(self) -> str:
        """The address of the tracking store."""
        return self._store.uri

    def on_run_start(self) -> None:
        """Locks the directory for this process, and starts to send what is logged."""
        make_directory(self._directory)
        with ExitStack() as stack:
            stack.enter_context(lock_run_directory(self._directory))
            if self._copied:
                Outbox.reset_sent(self._directory)
            identity = self._read_identity().add_writer(self._directory)
            identity.write(self._directory)
            self._outbox = stack.enter_context(closing(Outbox(self._directory)))
            if self._resumed or self._copied:
                self._outbox.append({"kind": "resumed"})
                self._outbox.append({"kind": "tags", "tags": {WRITER_TAG: str(identity.writer)}})
            self._delivery = Delivery(
                lambda: self._store.client, self.run_id, self._directory, self._outbox, ask=self._resumed
            )
            self._sender = Sender(self._delivery, self.uri)
            self._held = stack.pop_all()

    def _read_identity(self) -> Identity:
        """Returns the identity that the directory records, if it is of the same run; else a new one."""
        new = Identity(run_id=self.run_id, tracking_uri=self.uri, parent_id=self._parent_id)
        try:
            recorded = read_identity(self._directory)
        except BadInput:
            return new
        same = (recorded.run_id, recorded.tracking_uri) == (new.run_id, new.tracking_uri)
        return recorded if same else new

    def _queue(self, kind: str, **fields: object) -> None:
        try:
            self._outbox.append({"kind": kind, **fields})
        finally:
            self._sender.wake()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Logs parameters of the run, as text."""
        self._queue("params", params={key: str(value) for key, value in params.items()})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the MLflow run."""
        self._queue("tags", tags=dict(tags))

    def log_note(self, note: Note, name: str | None = None) -> None:
        """Sets the note of the MLflow run.

        Args:
            note: What a reader should see first.
            name: The name of the run in the note of its experiment; None if that note stays as it is.
        """
        of_experiment = "" if name is None else note.build_experiment_markdown(name)
        self._queue("note", text=note.build_markdown(), experiment_text=of_experiment)

    def log_view(self, view: RunView) -> None:
        """Saves a view of the table of runs in the run's experiment, in place of an earlier one with its key."""
        tag, value = view.build_tag(_get_milliseconds())
        self._queue("view", tag=tag, value=value)

    def log_data(self, data: DataSummary) -> None:
        """Logs a data set as an input of the run."""
        self._queue("data", **data.build_fields())

    def log_experiment(self, experiment: Experiment) -> None:
        """Logs the experiment as a file that ``fednar run`` takes."""
        path = RunDirectory(self._directory).experiment_yaml
        replace_file(path, dump(experiment))
        self.log_file(path)

    def log_file(self, path: Path) -> None:
        """Uploads a file of the run directory as an artifact."""
        self._queue("file", path=str(path.relative_to(self._directory)))

    def log_table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Logs rows as a JSON table that the MLflow UI shows. A later table of the same name replaces it."""
        columns = list(rows[0]) if rows else []
        data = [[_replace_non_finite(row[column]) for column in columns] for row in rows]
        replace_file(self._directory / name, json.dumps({"columns": columns, "data": data}))
        self._queue("table", path=name)

    def follow(self, journal: Journal) -> None:
        """Sends the rounds of a journal, those recorded already and those to come, with step = round."""
        self._delivery.rounds = journal.file

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs metrics of the run as a whole, under their names in MLflow."""
        finite = {name_in_mlflow(name): float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._queue("metrics", metrics=finite, step=step, time=_get_milliseconds())

    def save_model(self, model: torch.nn.Module, example: npt.NDArray[Any], schema: TableSchema | None = None) -> None:
        """Logs the model with its signature.

        Args:
            model: Takes raw inputs.
            example: Two or more raw inputs, [n, …].
            schema: The columns of ``example`` [n, columns]; None if they have no names.
        """
        directory = RunDirectory(self._directory).model
        save_model(model, example, directory, schema)
        self._queue("model", path=directory.name)

    def link_model(self, run_id: str) -> None:
        """Links the model of another MLflow run, such as that of a search's best experiment, to this run."""
        self._queue("model of", run_id=run_id)

    def set_end_status(self, status: str) -> None:
        """Sets the status that MLflow shows after a normal end: FINISHED by default, KILLED or FAILED."""
        self._ends_as = status

    def on_run_end(self) -> None:
        """Ends the MLflow run, and waits until everything is sent or MLflow does not answer."""
        announce("sending the last records to MLflow")
        self._end(self._ends_as, math.inf)

    def on_error(self, error: BaseException) -> None:
        """Ends the MLflow run as KILLED if it was interrupted, otherwise as FAILED, and tags it with the error."""
        interrupted = isinstance(error, KeyboardInterrupt | GeneratorExit | SystemExit)
        status, seconds = ("KILLED", INTERRUPTED_SECONDS) if interrupted else ("FAILED", math.inf)
        self._end(status, seconds, {END_TAG: f"{type(error).__name__}: {error}"[:500]})

    def _end(self, status: str, seconds: float, tags: Mapping[str, str] | None = None) -> None:
        """Ends the MLflow run, and waits for MLflow for at most ``seconds``."""
        with self._held:
            with suppress(RunFailed):  # a full disk: MLflow is informed all the same
                if tags is not None:
                    self.log_tags(tags)
            with suppress(RunFailed):
                self._queue("end", status=status, time=_get_milliseconds())
            self._sender.close(seconds)
            self._warn_about_unsent()

    def _warn_about_unsent(self) -> None:
        if self._delivery.owes:
            log.warning(
                "MLflow at %s does not have everything of this run: %d rounds and %d other records are not sent yet; "
                "when it answers, send them with: fednar sync %s",
                self.uri, self._delivery.owed_rounds, self._delivery.owed_operations, shlex.quote(str(self._directory)),
            )  # fmt: skip


def _get_milliseconds() -> int:
    """Returns the time in milliseconds since the epoch."""
    return int(time.time() * 1000)


def _replace_non_finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
