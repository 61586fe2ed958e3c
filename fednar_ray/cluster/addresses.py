"""Where a job's results go: its working directory is temporary, so whatever lies there is lost with the job."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fednar_ray.config import Document, is_relative
from fednar_ray.core.errors import ConfigError

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a job, and for nothing else
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
TEMPORARY = "a job's working directory is temporary"
DATA = ("data.directory", "data.path")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_in_temporary_directory() -> bool:
    """Is this process the command of a Ray job, in the working directory that Ray unpacked for it?"""
    if not json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("runtime_env", {}).get("working_dir"):
        return False
    return "working_dir_files" in Path.cwd().parts  # where Ray unpacks them, below its own directory


def check_results_outlive_job(document: Document, command: str) -> None:
    """Within a job: raises ConfigError where the command's results would be lost with it."""
    if is_in_temporary_directory():
        _refuse(find_lost_results(document, command, os.environ))


def check_before_submitting(document: Document, command: str, environment: Mapping[str, str]) -> None:
    """The same before there is a job, with the variables that it will have; data must be on the cluster, too.

    Raises ConfigError with every problem at once.
    """
    _refuse([*find_lost_results(document, command, environment), *_left_behind(document)])


def _refuse(problems: list[str]) -> None:
    if problems:
        hint = (
            "or let the job work in a directory of the cluster that outlives it: fednar submit --directory /shared/me"
        )
        raise ConfigError((*problems, hint))


def find_lost_results(document: Document, command: str, environment: Mapping[str, str]) -> list[str]:
    """What a command would write into the temporary directory, and what to write instead."""
    return [*_tracking(document, environment), *_checkpoints(document), *_search(command)]


def _tracking(document: Document, environment: Mapping[str, str]) -> Iterator[str]:
    uri, variable = document.experiment.tracking.uri, environment.get(TRACKING_VARIABLE)
    instead = "write a server's address (http://…), or a store by an absolute path (sqlite:////shared/mlflow.db)"
    if "tracking.uri" in document.relative:
        yield f"tracking.uri: {document.relative['tracking.uri']} is relative, and {TEMPORARY}: {instead}"
    elif uri is None and not variable:
        yield f"tracking.uri: null, without {TRACKING_VARIABLE}, is ./mlflow.db, and {TEMPORARY}: {instead}"
    elif uri is None and variable and is_relative(variable):
        yield f"tracking.uri: null takes {TRACKING_VARIABLE}: {variable} is relative, and {TEMPORARY}: {instead}"


def _checkpoints(document: Document) -> Iterator[str]:
    settings = document.experiment.checkpoint
    instead = "write s3://…, gs://…, or an absolute path (/shared/checkpoints)"
    if settings.every is None:
        return
    if "checkpoint.storage" in document.relative:
        yield f"checkpoint.storage: {document.relative['checkpoint.storage']} is relative, and {TEMPORARY}: {instead}"
    elif settings.storage is None:
        without = "checkpoint.every=null keeps none"
        yield f"checkpoint.storage: null is below ./runs, and {TEMPORARY}: {instead}; {without}"


def _search(command: str) -> Iterator[str]:
    if command == "tune":
        yield f"fednar tune keeps its trials in ./searches, where all nodes must see them, and {TEMPORARY}"


def _left_behind(document: Document) -> Iterator[str]:
    for key in DATA:
        if key in document.relative:
            path = document.relative[key]
            yield f"{key}: {path} is relative, and data do not go along: write an absolute path of the cluster's nodes"


def find_cluster_addresses(document: Document, environment: Mapping[str, str]) -> dict[str, str]:
    """By key, the addresses that mean something else here than there: paths, and servers on loopback."""
    experiment = document.experiment
    places = {"tracking.uri": experiment.tracking.uri or environment.get(TRACKING_VARIABLE)}
    if experiment.checkpoint.every is not None:
        places["checkpoint.storage"] = experiment.checkpoint.storage
    if experiment.data is not None:
        places |= {f"data.{key}": getattr(experiment.data, key, None) for key in ("directory", "path")}
    return {key: place for key, place in places.items() if place and key not in document.relative and _is_local(place)}


def _is_local(place: str) -> bool:
    parts = urlsplit(place)
    return parts.scheme in ("", "file", "sqlite") or parts.hostname in LOOPBACK
