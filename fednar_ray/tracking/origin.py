"""Where a run comes from: who started it, by which command, from which commit, with which versions."""

import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mlflow.tracking.context.git_context import GitRunContext
from mlflow.tracking.context.registry import resolve_tags

from fednar_ray.tracking.tags import (
    COMMAND_TAG,
    FEDNAR_VERSION_TAG,
    GIT_COMMIT_TAG,
    RAY_VERSION_TAG,
    SOURCE_TAGS,
    TORCH_VERSION_TAG,
    USER_TAG,
)

COMMAND = "fednar"
LONGEST_COMMAND = 4000  # characters; MLflow takes 8000 per tag


def build_origin_tags() -> dict[str, str]:
    """Returns the tags of a new run that tell where it comes from.

    The address of the git repository, which MLflow would record, is left out, since it may contain a password.
    """
    context = resolve_tags(ignore=[GitRunContext])
    found = {
        **{name: context.get(name) for name in (USER_TAG, *SOURCE_TAGS)},
        COMMAND_TAG: _find_command(),
        GIT_COMMIT_TAG: _find_git_commit(),
        FEDNAR_VERSION_TAG: _get_version("fednar-ray"),
        RAY_VERSION_TAG: _get_version("ray"),
        TORCH_VERSION_TAG: torch.__version__,
    }
    return {name: value for name, value in found.items() if value}


def _find_command() -> str | None:
    """Returns the command as typed; None in another program, whose arguments are not known to be harmless."""
    program, *words = sys.argv or [""]
    if Path(program).name != COMMAND:
        return None
    return shlex.join([COMMAND, *words])[:LONGEST_COMMAND]


def _get_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _find_git_commit() -> str | None:
    """Returns the commit of the working directory; None if it is not a git checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
