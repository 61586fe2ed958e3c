"""Reports to MLflow: one run an experiment, metrics at step = round, and the final model.

Only the driver reports.  What it reports is written to the run directory first, and sent by a thread of its own:
a run neither waits for MLflow nor fails with it.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mlflow
import mlflow.pytorch
import numpy as np
import numpy.typing as npt
import torch
from mlflow import MlflowClient
from mlflow.models import infer_signature

from fednar_ray.config import Experiment, dump
from fednar_ray.credentials import check_address
from fednar_ray.errors import RunFailed, TrackingUnavailable
from fednar_ray.tracking.delivery import END_TAG, MODEL_NAME, Delivery, reason_of
from fednar_ray.tracking.journal import EXPERIMENT_FILE, Journal
from fednar_ray.tracking.lines import held_alone, make_directory, replace, sole_writer
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.sender import Sender

log = logging.getLogger("fednar_ray")

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
RUN_FILE = "run.json"  # of a run directory: whose it is
HTTP_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's own takes four minutes; trying again is the sender's job
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # seconds, of silence
}
INTERRUPTED_SECONDS = 3.0  # the longest that the end of an interrupted run may take


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """The data set, as MLflow shows it among a run's inputs."""

    name: str
    digest: str
    clients: int
    examples: int
    input_shape: tuple[int, ...]
    classes: int


class Store:
    """A tracking store: where it is, and whether it answers. Making one contacts nothing.

    Raises BadInput where the address carries a password: it is recorded with every run.
    """

    def __init__(self, uri: str | None) -> None:
        check_address(TRACKING_VARIABLE if uri is None else "the tracking store", uri or mlflow.get_tracking_uri())
        self.uri = uri or mlflow.get_tracking_uri()
        if self.uri.startswith("sqlite:///") and not self.uri.startswith("sqlite:////"):
            self.uri = "sqlite:///" + os.path.abspath(self.uri.removeprefix("sqlite:///"))
        for name, value in HTTP_SETTINGS.items():
            os.environ.setdefault(name, value)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; a database is opened by it, and brought up to date, by one process at a time."""
        with _opened_alone(self.uri):
            return MlflowClient(self.uri)

    def check(self) -> None:
        """Raises TrackingUnavailable where the store cannot be read."""
        with answering(self.uri):
            self.client.search_experiments(max_results=1)

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, made if it is new; beside a SQLite file, its artifacts lie there too."""
        with answering(self.uri):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            location = None
            if self.uri.startswith("sqlite:///"):
                location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlruns" / name).as_uri()
            return str(self.client.create_experiment(name, artifact_location=location))

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        """A new run, tagged with what runs it as well; returns its id."""
        with answering(self.uri):
            run = self.client.create_run(experiment_id, run_name=name, tags={**_version_tags(), **tags})
        return str(run.info.run_id)

    def register_model(self, run_id: str, name: str) -> int:
        """The run's model as the next version of a registered model, made if it is new; returns the version."""
        with answering(self.uri):
            if not self.client.search_registered_models(filter_string=f"name = '{name}'"):
                self.client.create_registered_model(name)
            (model,) = self.client.get_run(run_id).outputs.model_outputs
            logged = self.client.get_logged_model(model.model_id)
            version = self.client.create_model_version(name, logged.artifact_location, run_id, model_id=model.model_id)
        return int(version.version)

    def log_files(self, run_id: str, directory: Path, name: str) -> None:
        """The files of a directory among a run's artifacts, below ``name``."""
        with answering(self.uri):
            self.client.log_artifacts(run_id, str(directory), name)


@contextmanager
def _opened_alone(uri: str) -> Iterator[None]:
    """MLflow's migrations of a database end in an error where two processes begin them at once: the second waits."""
    name = f"fednar-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    with ExitStack() as stack:
        with suppress(OSError):  # another user's file, or a file system without locks
            stack.enter_context(held_alone(Path(tempfile.gettempdir()) / name))
        yield


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Whatever a store raises (MLflow lets SQLAlchemy's and requests' through) as TrackingUnavailable."""
    try:
        yield
    except Exception as error:
        raise TrackingUnavailable(f"MLflow at {uri} does not answer: {reason_of(error)}") from error


class RunTracker:
    """One MLflow run; a context manager that ends it as FINISHED, FAILED or KILLED.

    Everything that is logged is in ``directory`` before MLflow hears of it, and what MLflow has not heard by the end
    is sent by ``sync``.  Logging raises RunFailed where the directory's disk is full, and never for MLflow's sake.
    ``resumed``: the run was recorded before; its outbox goes on, and no round that MLflow has is sent again.
    Entering raises BadInput where another process writes ``directory``.
    """

    def __init__(self, store: Store, run_id: str, directory: Path, *, resumed: bool = False) -> None:
        self.run_id = run_id
        self._store, self._directory, self._resumed = store, directory, resumed
        self._held = ExitStack()
        self._ends_as = "FINISHED"

    @property
    def uri(self) -> str:
        """The tracking store."""
        return self._store.uri

    def __enter__(self) -> Self:
        make_directory(self._directory)
        with ExitStack() as stack:
            stack.enter_context(sole_writer(self._directory))
            replace(self._directory / RUN_FILE, json.dumps({"run_id": self.run_id, "tracking_uri": self.uri}))
            self._outbox = stack.enter_context(closing(Outbox(self._directory)))
            if self._resumed:
                self._outbox.append({"kind": "resumed"})
            self._delivery = Delivery(
                lambda: self._store.client, self.run_id, self._directory, self._outbox, ask=self._resumed
            )
            self._sender = Sender(self._delivery, self.uri)
            self._held = stack.pop_all()
        return self

    def _queue(self, kind: str, **fields: object) -> None:
        try:
            self._outbox.append({"kind": kind, **fields})
        finally:
            self._sender.wake()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Flattened parameters."""
        self._queue("params", params={key: str(value) for key, value in params.items()})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags that become known during the run."""
        self._queue("tags", tags=dict(tags))

    def log_data(self, data: DataSummary) -> None:
        """The data set as an input of the run."""
        profile = {"clients": data.clients, "examples": data.examples, "classes": data.classes}
        self._queue("data", name=data.name, digest=data.digest, profile=profile)

    def log_experiment(self, experiment: Experiment) -> None:
        """The experiment as a file that ``fednar run`` takes."""
        replace(self._directory / EXPERIMENT_FILE, dump(experiment))
        self.log_file(self._directory / EXPERIMENT_FILE)

    def log_file(self, path: Path) -> None:
        """A file of the run directory among the run's artifacts."""
        self._queue("file", path=str(path.relative_to(self._directory)))

    def log_table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Rows as a JSON table that the MLflow UI shows; a second one of that name replaces the first."""
        columns = list(rows[0]) if rows else []
        data = [[_for_table(row[column]) for column in columns] for row in rows]
        replace(self._directory / name, json.dumps({"columns": columns, "data": data}))
        self._queue("table", path=name)

    def log(self, journal: Journal) -> None:
        """The rounds that the journal holds, each at step = round; those that MLflow lacks go with the next batch."""
        self._delivery.rounds = journal.file

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Figures of the run as a whole."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._queue("metrics", metrics=finite, step=step, time=_now())

    def save_model(self, model: torch.nn.Module, example: npt.NDArray[Any]) -> None:
        """The model with its signature; ``example`` is a batch of two or more inputs."""
        _save_model(model, example, self._directory / MODEL_NAME)
        self._queue("model", path=MODEL_NAME)

    def ends_as(self, status: str) -> None:
        """What MLflow is to call the run at its end: FINISHED, unless told otherwise, KILLED or FAILED."""
        self._ends_as = status

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | GeneratorExit | SystemExit)
        status = self._ends_as if kind is None else "KILLED" if interrupted else "FAILED"
        with self._held:
            if kind is not None:
                with suppress(RunFailed):  # a full disk: MLflow is told all the same
                    self.log_tags({END_TAG: f"{kind.__name__}: {error}"[:500]})
            with suppress(RunFailed):
                self._queue("end", status=status, time=_now())
            self._sender.close(INTERRUPTED_SECONDS if interrupted else math.inf)
            self._tell_what_is_owed()

    def _tell_what_is_owed(self) -> None:
        if self._delivery.owes:
            log.warning(
                "MLflow at %s does not have everything of this run: %d rounds and %d other things are yet to be sent; "
                "when it answers, do so with: fednar sync %s",
                self.uri, self._delivery.owed_rounds, self._delivery.owed_operations, self._directory,
            )  # fmt: skip


def _now() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)


def _for_table(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save_model(model: torch.nn.Module, example: npt.NDArray[Any], directory: Path) -> None:
    """Write MLflow's format: an exported graph (pt2, which runs no code when loaded), or where torch.export cannot
    trace the model a pickle.
    """
    with torch.no_grad():
        outputs = model(torch.from_numpy(example)).numpy()
    arguments: dict[str, Any] = {
        "signature": infer_signature(example, outputs),
        "input_example": example,
        "pip_requirements": [f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export and MLflow, about themselves
        try:
            _save_afresh(model, directory, serialization_format="pt2", **arguments)
        except Exception as error:  # noqa: BLE001 - torch.export raises many kinds
            log.info("the model is stored as a pickle, since torch.export cannot trace it: %s", error)
            try:
                _save_afresh(model, directory, serialization_format="pickle", **arguments)
            except Exception as failure:
                raise RunFailed(f"{directory}: the model cannot be saved: {reason_of(failure)}") from failure


def _save_afresh(model: torch.nn.Module, directory: Path, **arguments: Any) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # of an attempt that did not end, or of the run before its resumption
    mlflow.pytorch.save_model(model, directory, **arguments)


def _version_tags() -> dict[str, str]:
    tags = {
        "fednar.version": _version("fednar-ray"),
        "ray.version": _version("ray"),
        "torch.version": torch.__version__,
    }
    commit = _git_commit()
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git_commit() -> str | None:
    """The commit of the working directory, where it is a git checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
