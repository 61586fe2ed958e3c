"""``fednar submit``, ``jobs``, ``logs`` and ``stop``."""

import json
import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fednar_ray.cli.options import COMMANDS, as_json, document_of, files_and_overrides, resume_or_file
from fednar_ray.cluster.addresses import TRACKING_VARIABLE, check_before_submitting, find_cluster_addresses
from fednar_ray.cluster.packing import Package, collect_package
from fednar_ray.config import Document
from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import BadInput

if TYPE_CHECKING:
    from fednar_ray.cluster.jobs import Jobs

PASSED_ON = (
    TRACKING_VARIABLE,
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL",
    "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING",
)
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
READ_FROM_PACKAGE = ("availability.trace", "model.weights")

address_option = click.option(
    "--address", metavar="URL", help="The cluster's dashboard, http://head:8265; default RAY_API_SERVER_ADDRESS."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is to be submitted."""

    name: str
    command: str  # a shell's
    package: Package


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[run|compare|tune] [FILE] [key=value …]")
@address_option
@click.option("--directory", metavar="DIR", help="A directory of the cluster that outlives the job, to work in.")
@click.option("--env", "given", multiple=True, metavar="NAME[=VALUE]", help="A variable to pass on; jobs show it.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Files or directories that do not go along.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job; print its id.")
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
    """Run a command as a job of a Ray cluster, with the files of this directory; without a command, run.

    Follows its log and ends with its exit code; the job goes on without us. Options of the command pass through:
    fednar submit tune search.yaml --register digits
    """
    name, *rest = arguments if arguments and arguments[0] in COMMANDS else ("run", *arguments)
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, click.Group)
    parsed = group.commands[name].make_context(name, list(rest)).params
    variables = _variables(given)
    job = _job(name, rest, parsed, directory, exclude, variables)
    from fednar_ray.cluster.jobs import Jobs, describe_reattach

    jobs = Jobs(address)
    job_id = f"{job.name}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as copy:
        job.package.copy_to(Path(copy))
        jobs.submit(job.command, job_id=job_id, directory=Path(copy), variables=variables)
    click.echo(f"job {job_id} on {jobs.address}, with {job.package}", err=True)
    if no_wait:
        click.echo(job_id)
        return
    click.echo(f"Ctrl-C leaves it running; {describe_reattach(job_id)}", err=True)
    sys.exit(_follow(job_id, jobs))


def _job(
    name: str,
    rest: Sequence[str],
    parsed: Mapping[str, Any],
    directory: str | None,
    exclude: Sequence[str],
    variables: Mapping[str, str],
) -> _Job:
    """Raises BadInput's kinds for what cannot become a job, before anybody is asked."""
    if directory is not None and not directory.startswith("/"):
        raise BadInput(f"--directory {directory}: an absolute path of the cluster's nodes is needed")
    words, resume = resume_or_file(parsed["arguments"], parsed.get("resume"))
    document = _document(name, words, resume, directory)
    files, _ = files_and_overrides(words)
    root = _root(files)
    if document is not None:
        if directory is None:
            check_before_submitting(document, name, variables)
        _tell(document, directory, variables)
    package = collect_package(root, needed=_needed(root, files, document, directory), exclude=exclude)
    experiment = name if document is None else document.experiment.name
    return _Job(name=experiment, command=_command(name, rest, files, root, directory), package=package)


def _document(name: str, words: Sequence[str], resume: str | None, directory: str | None) -> Document | None:
    """What is to run, read as on the cluster; None where a run or a search goes on by its name."""
    files, _ = files_and_overrides(words)
    if resume and not files:
        _check_goes_on(resume, directory)
        return None
    return document_of(words, name)


def _check_goes_on(resume: str, directory: str | None) -> None:
    if directory is None and "://" not in resume and not resume.startswith("/"):
        text = f"--resume {resume}: a job does not see what lies in a working directory"
        raise BadInput(f"{text}; name the place of the checkpoints (s3://…, /shared/…), or its --directory")


def _root(files: Sequence[str]) -> Path:
    """This directory, or the file's own where that is elsewhere."""
    here = Path.cwd()
    if not files or _absolute(files[0]).is_relative_to(here):
        return here
    return _absolute(files[0]).parent


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))


def _needed(root: Path, files: Sequence[str], document: Document | None, directory: str | None) -> list[Path]:
    """The experiment, and what it names by relative paths."""
    needed = [_absolute(file).relative_to(root) for file in files]
    if document is None or directory is not None:
        return needed
    for key in READ_FROM_PACKAGE:
        path = document.relative.get(key)
        if path is not None:
            file = _absolute(path)
            if not file.is_relative_to(root) or not file.is_file():
                raise BadInput(f"{key}: {path}: no such file below {root}, whose files go along with the job")
            needed.append(file.relative_to(root))
    return needed


def _command(name: str, rest: Sequence[str], files: Sequence[str], root: Path, directory: str | None) -> str:
    """As a shell takes it; paths are those of the job's working directory."""
    moved = {file: str(_absolute(file).relative_to(root)) for file in files}
    if directory is None:
        return shlex.join(["fednar", name, *(moved.get(word, word) for word in rest)])
    words = [f'"$package"/{shlex.quote(moved[word])}' if word in moved else shlex.quote(word) for word in rest]
    place = shlex.quote(directory)
    return f"package=$PWD && mkdir -p {place} && cd {place} && exec fednar {' '.join([name, *words])}"


def _variables(given: Sequence[str]) -> dict[str, str]:
    """What is passed on: MLflow's that are no secrets, and those that were asked for."""
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    check_address(TRACKING_VARIABLE, variables.get(TRACKING_VARIABLE))
    for text in given:
        name, equals, value = text.partition("=")
        if not equals and name not in os.environ:
            raise BadInput(f"--env {name}: no such variable here; --env {name}=value gives one")
        variables[name] = value if equals else os.environ[name]
    kept = [name for name in CREDENTIALS if name in os.environ and name not in variables]
    if kept:
        how = "whoever may list the jobs could read them: set them on the cluster's head, or pass them by --env"
        click.echo(f"not passed on: {', '.join(kept)}; {how}", err=True)
    return variables


def _tell(document: Document, directory: str | None, variables: Mapping[str, str]) -> None:
    for key, place in find_cluster_addresses(document, variables).items():
        click.echo(f"{key}: {place} is taken as the cluster's nodes see it", err=True)
    if directory is not None:
        for key, place in document.relative.items():
            click.echo(f"{key}: {place} is relative to {directory} on the cluster", err=True)


def _follow(job_id: str, jobs: "Jobs") -> int:
    from fednar_ray.cluster.jobs import describe_reattach

    def write(text: str) -> None:
        click.echo(text, nl=False)

    try:
        code = jobs.follow(job_id, write)
    except KeyboardInterrupt as error:
        error.args = (f"job {job_id} goes on: {describe_reattach(job_id)}",)
        raise
    click.echo(f"job {job_id} ended with exit code {code}", err=True)
    return code


@click.command(name="jobs")
@address_option
@as_json
def list_jobs(address: str | None, as_json: bool) -> None:
    """List the jobs of a Ray cluster, the newest first."""
    from fednar_ray.cluster.jobs import Jobs

    found = Jobs(address).list_jobs()
    if as_json:
        click.echo(json.dumps([asdict(job) for job in found]))
        return
    for job in found:
        started = "" if job.started is None else datetime.fromtimestamp(job.started / 1000).isoformat(" ", "seconds")
        code = "" if job.exit_code is None else f"exit code {job.exit_code}"
        click.echo(f"{job.job_id:32}{job.status:11}{code:14}{started:21}{job.command}".rstrip())
    if not found:
        click.echo("no jobs")


@click.command()
@click.argument("job_id", metavar="ID")
@address_option
@click.option("--follow", is_flag=True, help="Until the job ends; the exit code is then the job's.")
def logs(job_id: str, address: str | None, follow: bool) -> None:
    """Print what a job has printed."""
    from fednar_ray.cluster.jobs import Jobs

    jobs = Jobs(address)
    if follow:
        sys.exit(_follow(job_id, jobs))
    click.echo(jobs.logs(job_id), nl=False)


@click.command()
@click.argument("job_id", metavar="ID")
@address_option
def stop(job_id: str, address: str | None) -> None:
    """End a job as Ctrl-C would: it writes a last checkpoint, and MLflow calls the run KILLED."""
    from fednar_ray.cluster.jobs import Jobs

    job = Jobs(address).stop(job_id)
    click.echo(f"job {job_id}: {job.status}")
