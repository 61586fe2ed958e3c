"""Checks where the results of a job are written. Its working directory is temporary, and removed with the job."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fednar_ray.config import Document, is_relative
from fednar_ray.config.paths import PATHS
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.store_uris import TRACKING_VARIABLE

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a job, and for nothing else
TEMPORARY = "a job's working directory is temporary"
DATA_KEYS = tuple(key for key in PATHS if key.startswith("data."))
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_in_temporary_directory() -> bool:
    """Returns whether this process is the command of a Ray job, in the working directory that Ray unpacked for it."""
    if not json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("runtime_env", {}).get("working_dir"):
        return False
    return "working_dir_files" in Path.cwd().parts  # the directory below which Ray unpacks them


def check_results_outlive_job(document: Document, command: str) -> None:
    """Checks inside a job that its results are written where they outlive it.

    Args:
        document: What the command reads.
        command: The name of the command: run, compare or tune.

    Raises:
        ConfigError: Results would be lost together with the job's working directory.
    """
    if is_in_temporary_directory():
        _raise_if_any(find_lost_results(document, command, os.environ))


def check_before_submitting(document: Document, command: str, environment: Mapping[str, str]) -> None:
    """Checks before a job is submitted that its results outlive it, and that its data is on the cluster.

    Args:
        document: What the command reads.
        command: The name of the command: run, compare or tune.
        environment: The environment variables that the job will have.

    Raises:
        ConfigError: Results would be lost, or data is missing. It lists every problem.
    """
    _raise_if_any([*find_lost_results(document, command, environment), *_find_missing_data(document)])


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        hint = "or run the job in a directory of the cluster that outlives it: fednar submit --directory /shared/me"
        raise ConfigError((*problems, hint))


def find_lost_results(document: Document, command: str, environment: Mapping[str, str]) -> list[str]:
    """Describes what a command would write into the temporary directory, and what to set instead."""
    return [*_find_lost_tracking(document, environment), *_find_lost_checkpoints(document), *_find_lost_search(command)]


def _find_lost_tracking(document: Document, environment: Mapping[str, str]) -> Iterator[str]:
    uri, variable = document.experiment.tracking.uri, environment.get(TRACKING_VARIABLE)
    instead = "write a server's address (http://…), or a store by an absolute path (sqlite:////shared/mlflow.db)"
    if "tracking.uri" in document.relative:
        yield f"tracking.uri: {document.relative['tracking.uri']} is relative, and {TEMPORARY}: {instead}"
    elif uri is None and not variable:
        yield f"tracking.uri: null, without {TRACKING_VARIABLE}, is ./mlflow.db, and {TEMPORARY}: {instead}"
    elif uri is None and variable and is_relative(variable):
        yield f"tracking.uri: null takes {TRACKING_VARIABLE}: {variable} is relative, and {TEMPORARY}: {instead}"


def _find_lost_checkpoints(document: Document) -> Iterator[str]:
    settings = document.experiment.checkpoint
    instead = "write s3://…, gs://…, or an absolute path (/shared/checkpoints)"
    if settings.every is None:
        return
    if "checkpoint.storage" in document.relative:
        yield f"checkpoint.storage: {document.relative['checkpoint.storage']} is relative, and {TEMPORARY}: {instead}"
    elif settings.storage is None:
        without = "checkpoint.every=null writes no checkpoints"
        yield f"checkpoint.storage: null is below ./runs, and {TEMPORARY}: {instead}; {without}"


def _find_lost_search(command: str) -> Iterator[str]:
    if command == "tune":
        yield f"fednar tune keeps its trials in ./searches, where all nodes must see them, and {TEMPORARY}"


def _find_missing_data(document: Document) -> Iterator[str]:
    for key in DATA_KEYS:
        if key in document.relative:
            path = document.relative[key]
            yield f"{key}: {path} is relative, and data is not sent with the job: write an absolute path on the nodes"


def find_cluster_addresses(document: Document, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns, by key, the addresses that mean something else on the cluster: paths, and servers on loopback."""
    experiment = document.experiment
    addresses = {"tracking.uri": experiment.tracking.uri or environment.get(TRACKING_VARIABLE)}
    if experiment.checkpoint.every is not None:
        addresses["checkpoint.storage"] = experiment.checkpoint.storage
    if experiment.data is not None:
        addresses |= {f"data.{key}": getattr(experiment.data, key, None) for key in ("directory", "path", "test_path")}
    return {
        key: address
        for key, address in addresses.items()
        if address and key not in document.relative and _is_local(address)
    }


def _is_local(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in ("", "file", "sqlite") or parts.hostname in LOOPBACK
