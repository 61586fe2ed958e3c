"""Where a run comes from: who started it, by which command, from which commit, with which versions."""

import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlflow.tracking.context.git_context import GitRunContext
from mlflow.tracking.context.registry import resolve_tags

from fednar_ray.core.credentials import find_secrets
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
    import torch

    context = resolve_tags(ignore=[GitRunContext])
    found = {
        **{name: context.get(name) for name in (USER_TAG, *SOURCE_TAGS)},
        COMMAND_TAG: (find_command() or "")[:LONGEST_COMMAND],
        GIT_COMMIT_TAG: _find_git_commit(),
        FEDNAR_VERSION_TAG: find_version("fednar-ray") or "unknown",
        RAY_VERSION_TAG: find_version("ray") or "unknown",
        TORCH_VERSION_TAG: torch.__version__,
    }
    return {name: value for name, value in found.items() if value}


def find_command() -> str | None:
    """Returns the ``fednar`` command of this process as typed.

    Returns:
        The command; None if it contains a secret, and in another program, whose arguments are not known to be harmless.
    """
    program, *words = sys.argv or [""]
    if Path(program).name != COMMAND or list(find_secrets(words)):
        return None
    return shlex.join([COMMAND, *words])


def find_version(package: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _find_git_commit() -> str | None:
    """Returns the commit of the working directory; None if it is not a git checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
