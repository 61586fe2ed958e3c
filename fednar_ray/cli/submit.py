"""``fednar submit``: run a command as a job of a Ray cluster, with the files of the working directory."""

import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fednar_ray.cli.completion import complete_arguments
from fednar_ray.cli.jobs import ASKING, dashboard_address, follow_job
from fednar_ray.cli.options import COMMANDS, NEWEST, read_document, split_arguments
from fednar_ray.cli.output import START
from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import BadInput
from fednar_ray.core.stages import announce
from fednar_ray.core.store_uris import TRACKING_VARIABLE

if TYPE_CHECKING:
    from fednar_ray.cluster.packing import Package
    from fednar_ray.config import Document

PASSED_ON = (
    TRACKING_VARIABLE,
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL",
    "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING",
)
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
PACKAGED_KEYS = ("availability.trace", "model.weights")  # settings whose files go along with the job


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A job that can be submitted."""

    name: str
    command: str  # for a shell on the cluster
    package: "Package"


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes the command of the job, and then what follows it."""
    commands = () if ctx.params.get("arguments") else COMMANDS
    return [*(name for name in commands if name.startswith(incomplete)), *complete_arguments(ctx, param, incomplete)]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument(
    "arguments",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[run|compare|tune] [FILE] [key=value …]",
    shell_complete=_complete,
)
@dashboard_address
@click.option("--directory", metavar="DIR", help="A working directory on the cluster that outlives the job.")
@click.option(
    "--env",
    "given",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A variable for the job. The job list shows it.",
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Files or directories not to send with the job.")
@click.option("--no-wait", is_flag=True, help="Print the job's id instead of following the job.")
@click.pass_context
def submit(
    context: click.Context,
    arguments: tuple[str, ...],
    address: str | None,
    directory: str | None,
    given: tuple[str, ...],
    exclude: tuple[str, ...],
    no_wait: bool,
) -> None:
    """Run a command as a job of a Ray cluster. Without a command, the job runs fednar run.

    The job gets the files of this directory. This prints the job's log and exits with its exit code. The job keeps
    running if this command is ended. Options of the command are passed on, for example: fednar submit tune search.yaml
    --register digits
    """
    name, *rest = arguments if arguments and arguments[0] in COMMANDS else ("run", *arguments)
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, click.Group)
    parsed = group.commands[name].make_context(name, list(rest)).params
    variables = _collect_variables(given)
    announce(START)
    job = _build_job(name, rest, parsed, directory, exclude, variables)
    announce(ASKING)
    from fednar_ray.cluster.jobs import Jobs, describe_reattach

    cluster = Jobs(address)
    job_id = f"{job.name}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as copy:
        job.package.copy_to(Path(copy))
        cluster.submit(job.command, job_id=job_id, directory=Path(copy), variables=variables)
    click.echo(f"job {job_id} on {cluster.address}, with {job.package}", err=True)
    if no_wait:
        click.echo(job_id)
        return
    click.echo(f"Ctrl-C leaves it running; {describe_reattach(job_id)}", err=True)
    sys.exit(follow_job(job_id, cluster))


def _build_job(
    name: str,
    rest: Sequence[str],
    parsed: Mapping[str, Any],
    directory: str | None,
    exclude: Sequence[str],
    variables: Mapping[str, str],
) -> _Job:
    """Builds the job. Raises BadInput for what cannot become a job, before the cluster is asked."""
    from fednar_ray.cluster.addresses import check_before_submitting
    from fednar_ray.cluster.packing import collect_package

    if directory is not None and not directory.startswith("/"):
        raise BadInput(f"--directory {directory} is a relative path; give an absolute path of the cluster's nodes")
    words = parsed["arguments"]
    document = _read_document(name, words, parsed.get("resume"), directory)
    files, _ = split_arguments(words)
    root = _find_root(files)
    if document is not None:
        if directory is None:
            check_before_submitting(document, name, variables)
        _print_addresses(document, directory, variables)
    package = collect_package(root, needed=_list_needed(root, files, document, directory), exclude=exclude)
    experiment = name if document is None else document.experiment.name
    return _Job(name=experiment, command=_build_command(name, rest, files, root, directory), package=package)


def _read_document(name: str, words: Sequence[str], resume: str | None, directory: str | None) -> "Document | None":
    """Reads what the job trains, as the command on the cluster does; None if it resumes something by its name."""
    files, _ = split_arguments(words)
    if resume is None or resume == NEWEST or files:
        return read_document(words, name)
    if directory is None and "://" not in resume and not resume.startswith("/"):
        raise BadInput(
            f"--resume {resume}: a job does not see this working directory; name the place of the checkpoints "
            "(s3://…, /shared/…), or give the --directory of the earlier job"
        )
    return None


def _find_root(files: Sequence[str]) -> Path:
    """Returns the directory that is sent with the job: the working directory, or that of a FILE outside of it."""
    here = Path.cwd()
    if not files or _make_absolute(files[0]).is_relative_to(here):
        return here
    return _make_absolute(files[0]).parent


def _make_absolute(path: str) -> Path:
    return Path(os.path.abspath(path))


def _list_needed(root: Path, files: Sequence[str], document: "Document | None", directory: str | None) -> list[Path]:
    """Lists the files without which the job fails: the FILE, and what it names by relative paths."""
    needed = [_make_absolute(file).relative_to(root) for file in files]
    if document is None or directory is not None:
        return needed
    for key in PACKAGED_KEYS:
        path = document.relative.get(key)
        if path is not None:
            file = _make_absolute(path)
            if not file.is_relative_to(root) or not file.is_file():
                raise BadInput(f"{key}: {path}: no such file below {root}, the directory that is sent with the job")
            needed.append(file.relative_to(root))
    return needed


def _build_command(name: str, rest: Sequence[str], files: Sequence[str], root: Path, directory: str | None) -> str:
    """Builds the command for the cluster's shell, with paths of the job's working directory."""
    moved = {file: str(_make_absolute(file).relative_to(root)) for file in files}
    if directory is None:
        return shlex.join(["fednar", name, *(moved.get(word, word) for word in rest)])
    words = [f'"$package"/{shlex.quote(moved[word])}' if word in moved else shlex.quote(word) for word in rest]
    place = shlex.quote(directory)
    return f"package=$PWD && mkdir -p {place} && cd {place} && exec fednar {' '.join([name, *words])}"


def _collect_variables(given: Sequence[str]) -> dict[str, str]:
    """Collects the variables for the job: MLflow's, except secrets, and those that --env gives."""
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    check_address(TRACKING_VARIABLE, variables.get(TRACKING_VARIABLE))
    for text in given:
        name, equals, value = text.partition("=")
        if not equals and name not in os.environ:
            raise BadInput(f"--env {name}: no such variable is set here; give its value with --env {name}=value")
        variables[name] = value if equals else os.environ[name]
    kept = [name for name in CREDENTIALS if name in os.environ and name not in variables]
    if kept:
        why = "everybody who can list the jobs could read them. Set them on the cluster's head, or pass them with --env"
        click.echo(f"not passed on: {', '.join(kept)}; {why}", err=True)
    return variables


def _print_addresses(document: "Document", directory: str | None, variables: Mapping[str, str]) -> None:
    from fednar_ray.cluster.addresses import find_cluster_addresses

    for key, place in find_cluster_addresses(document, variables).items():
        click.echo(f"{key}: {place} is taken as the cluster's nodes see it", err=True)
    if directory is not None:
        for key, place in document.relative.items():
            click.echo(f"{key}: {place} is relative to {directory} on the cluster", err=True)
