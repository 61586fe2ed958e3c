"""Reports to MLflow: one run an experiment, metrics in batches at step = round, and the final model.

Only the driver logs.  Batches are sent by one background thread, so a round does not wait for the store.
"""

import logging
import os
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from fednar_ray.config import Experiment, dump
from fednar_ray.errors import TrackingUnavailable
from fednar_ray.messages import RoundRecord

log = logging.getLogger("fednar_ray")

FLUSH_SECONDS = 2.0  # a batch of many rounds costs a quarter a round of what a round by itself does
PARAMS_A_CALL = 100  # MLflow's limit
METRICS_A_CALL = 1000


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
    """A tracking store: where it is, and whether it answers."""

    def __init__(self, uri: str | None) -> None:
        self.uri = uri or mlflow.get_tracking_uri()
        if self.uri.startswith("sqlite:///") and not self.uri.startswith("sqlite:////"):
            self.uri = "sqlite:///" + os.path.abspath(self.uri.removeprefix("sqlite:///"))
        with _answering(self.uri):
            self.client = MlflowClient(self.uri)

    def check(self) -> None:
        """Raises TrackingUnavailable where the store cannot be read."""
        with _impatient(), _answering(self.uri):
            self.client.search_experiments(max_results=1)

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, made if it is new; beside a SQLite file, its artifacts lie there too."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith("sqlite:///"):
            location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlruns" / name).as_uri()
        return str(self.client.create_experiment(name, artifact_location=location))


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Whatever a store raises (MLflow lets SQLAlchemy's and requests' through) as TrackingUnavailable."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise TrackingUnavailable(f"MLflow at {uri} does not answer: {reason}") from error


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow's default is to try an absent server for four minutes; a user at a keyboard waits seconds."""
    keys = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    saved = {key: os.environ.get(key) for key in keys}
    os.environ.update({key: value for key, value in keys.items() if saved[key] is None})
    try:
        yield
    finally:
        for key, value in saved.items():
            if value is None:
                os.environ.pop(key, None)


class RunTracker:
    """One MLflow run; a context manager that ends it as FINISHED, FAILED or KILLED."""

    def __init__(self, store: Store, experiment_id: str, name: str, tags: Mapping[str, str]) -> None:
        self._store, self._client = store, store.client
        run = self._client.create_run(experiment_id, run_name=name, tags={**_version_tags(), **tags})
        self.run_id = str(run.info.run_id)
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._sending: Future[None] | None = None
        self._pending: list[Metric] = []
        self._last_flush = time.monotonic()

    @property
    def uri(self) -> str:
        """The tracking store."""
        return self._store.uri

    def log_params(self, params: Mapping[str, object]) -> None:
        """Flattened parameters."""
        entries = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entries), PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=entries[start : start + PARAMS_A_CALL])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags that become known during the run."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_data(self, data: DataSummary) -> None:
        """The data set as an input of the run."""
        profile = f'{{"clients": {data.clients}, "examples": {data.examples}, "classes": {data.classes}}}'
        entity = Dataset(data.name, data.digest, "code", f'{{"name": "{data.name}"}}', None, profile)
        tag = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(self.run_id, [DatasetInput(entity, [tag])])

    def log_experiment(self, experiment: Experiment) -> None:
        """The experiment as a file that ``fednar run`` takes."""
        self._client.log_text(self.run_id, dump(experiment), "experiment.yaml")

    def log_file(self, path: Path) -> None:
        """A file among the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path))

    def log_table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Rows as a JSON table that the MLflow UI shows."""
        columns = list(rows[0]) if rows else []
        self._client.log_table(self.run_id, {c: [row[c] for row in rows] for c in columns}, name)

    def log(self, record: RoundRecord) -> None:
        """A round's metrics at step = round, sent with the next batch."""
        now = int(time.time() * 1000)
        finite = ((k, v) for k, v in record.metrics.items() if np.isfinite(v))
        self._pending.extend(Metric(key, value, now, record.round_index) for key, value in finite)
        idle = self._sending is None or self._sending.done()
        if idle and time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self._send()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Figures of the run as a whole."""
        now = int(time.time() * 1000)
        self._pending.extend(Metric(key, value, now, step) for key, value in metrics.items())

    def flush(self) -> None:
        """Wait until everything logged so far is in the store."""
        self._send()
        assert self._sending is not None
        self._sending.result()

    def _send(self) -> None:
        if self._sending is not None:
            self._sending.result()  # its error, if it had one
        batch, self._pending = self._pending, []
        self._last_flush = time.monotonic()
        self._sending = self._sender.submit(self._send_batch, batch)

    def _send_batch(self, batch: list[Metric]) -> None:
        for start in range(0, len(batch), METRICS_A_CALL):
            self._client.log_batch(self.run_id, metrics=batch[start : start + METRICS_A_CALL])

    def log_model(self, model: torch.nn.Module, example: npt.NDArray[Any]) -> str:
        """The model with its signature; ``example`` is a batch of two or more inputs. Returns the model's URI.

        Stored as an exported graph (pt2, which runs no code when loaded), or pickled where torch.export cannot.
        """
        with torch.no_grad():
            outputs = model(torch.from_numpy(example)).numpy()
        arguments: dict[str, Any] = {
            "name": "model",
            "signature": infer_signature(example, outputs),
            "input_example": example,
            "pip_requirements": [f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
        }
        with _active(self.uri, self.run_id), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export and MLflow, about themselves
            try:
                return str(mlflow.pytorch.log_model(model, serialization_format="pt2", **arguments).model_uri)
            except Exception as error:  # noqa: BLE001 - torch.export raises many kinds
                log.info("the model is stored as a pickle, since torch.export cannot trace it: %s", error)
                return str(mlflow.pytorch.log_model(model, serialization_format="pickle", **arguments).model_uri)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            status = "FINISHED"
        elif issubclass(kind, KeyboardInterrupt | GeneratorExit | SystemExit):
            status = "KILLED"
        else:
            status = "FAILED"
        try:
            if error is not None:
                self.log_tags({"fednar.end": f"{kind.__name__ if kind else ''}: {error}"[:500]})
            self.flush()
        except MlflowException as failure:
            log.error("MLflow did not take the last metrics: %s", failure)
        finally:
            self._sender.shutdown()
            self._client.set_terminated(self.run_id, status)


@contextmanager
def _active(uri: str, run_id: str) -> Iterator[None]:
    """MLflow's fluent API pointed at one run, and put back afterwards."""
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_run(run_id=run_id, nested=True):
            yield
    finally:
        mlflow.set_tracking_uri(previous)


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


def flattened(experiment: Experiment) -> dict[str, object]:
    """Settings by dotted key, as MLflow parameters."""
    flat: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", experiment.model_dump(mode="json", exclude_none=True))
    return flat
