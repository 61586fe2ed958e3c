"""The tracking store: a server or a database of MLflow, in which experiments and runs are created."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import RestException

from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.core.store_uris import (
    build_artifact_folder,
    find_misread_folder,
    find_name_problem,
    find_sqlite_file,
    make_uri_absolute,
)
from fednar_ray.tracking.addresses import confirm
from fednar_ray.tracking.arrival import NotAnswered, describe_failure, open_artifacts, read_run
from fednar_ray.tracking.database_process import DatabaseProcess
from fednar_ray.tracking.identity import RUN_ID
from fednar_ray.tracking.locks import wait_for_lock_file
from fednar_ray.tracking.origin import build_origin_tags
from fednar_ray.tracking.tags import ABANDONED_TAG, WRITER_TAG

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
HTTP_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's default takes four minutes; the sender repeats requests
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # seconds without an answer
}


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
            return _Client(self.uri)

    @cached_property
    def _origin_tags(self) -> Mapping[str, str]:
        """The tags of all runs that this process creates here; finding them asks git."""
        return build_origin_tags()

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
            run = self.client.create_run(experiment_id, run_name=name, tags={**self._origin_tags, **tags})
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

    def log_files(self, run_id: str, directory: Path, name: str) -> None:
        """Uploads the files of a directory as artifacts of a run, in the artifact folder ``name``."""
        with raise_as_unavailable(self.uri):
            run = read_run(self.client, run_id)
            open_artifacts(self.client, run.info.artifact_uri).log_artifacts(str(directory), name)


class _Client(MlflowClient):  # type: ignore[misc]
    """MLflow's client, which lets a ``DatabaseProcess`` store batches if there is one."""

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> Any:
        """Stores a batch. What the other process has not stored is stored here, or raises here."""
        process = DatabaseProcess.current
        if process is not None and process.log_batch(
            self.tracking_uri,
            run_id,
            [(m.key, m.value, m.timestamp, m.step, m.model_id, m.dataset_name, m.dataset_digest) for m in metrics],
            {each.key: each.value for each in params},
            {each.key: each.value for each in tags},
        ):
            return None
        return super().log_batch(run_id, metrics, params, tags, synchronous)


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
