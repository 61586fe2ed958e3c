"""Submits, follows, lists and stops jobs through Ray's job API, which only this module imports."""

import asyncio
import importlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import BadInput, FednarError, RayUnavailable, first_line

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_SECONDS = 5.0
SILENCE_SECONDS = 60.0  # without output; then the job is read over a new connection, since the old one may be dead
PATIENCE_SECONDS = 120.0  # for a cluster that does not answer while a job is followed
POLL_SECONDS = 0.5
NO_AGENT, STARTING_SECONDS = "No available agent", 60.0  # the answer of a head that has just started, and for how long
STOPPED_EXIT_CODE = 143  # that of a command which SIGTERM ended
STOP_VARIABLES = {"RAY_JOB_STOP_WAIT_TIME_S": "20"}  # after Ray's 3 s a run may still be writing its last checkpoint
VERBOSE_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging",
)  # fmt: skip
SUBMISSION = "SUBMISSION"  # the type of the jobs that were submitted through the API


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """What the list of jobs shows of one.

    Attributes:
        job_id: The id that was given at submission.
        status: pending, running, succeeded, failed or stopped.
        exit_code: The exit code of the command, None if it has not ended.
        command: The shell command.
        started: The start in milliseconds since the epoch, None if the job is pending.
        ended: The end likewise, None if the job has not ended.
    """

    job_id: str
    status: str
    exit_code: int | None
    command: str
    started: int | None
    ended: int | None


class Jobs:
    """The jobs of a cluster. The constructor checks that the cluster answers and accepts our token.

    Args:
        address: The address of the cluster's dashboard, such as http://head:8265. None takes
            ``RAY_API_SERVER_ADDRESS``, then ``RAY_ADDRESS`` if it starts with http, then this machine.

    Raises:
        BadInput: The address is no address of a dashboard, or ``ray[default]`` is not installed.
        RayUnavailable: The cluster does not answer, or refuses the token.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _find_address(address)
        _check_installed()
        _check_answers(self.address)
        os.environ[ADDRESS_VARIABLE] = self.address  # Ray prefers its variables to what it is given
        with _translate_errors(self.address):
            self._client = _build_client(self.address)

    def submit(self, command: str, *, job_id: str, directory: Path, variables: Mapping[str, str]) -> None:
        """Starts a shell command as a job, in a copy of ``directory``, with these environment ``variables``."""
        environment = {"working_dir": str(directory), "env_vars": {**STOP_VARIABLES, **variables}}
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                with _translate_errors(self.address):
                    self._client.submit_job(entrypoint=command, submission_id=job_id, runtime_env=environment)
                return
            except RayUnavailable as error:
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def read_logs(self, job_id: str) -> str:
        """Returns what a job has printed so far. Raises BadInput if there is no such job."""
        with _translate_errors(self.address):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, write: Callable[[str], None]) -> int:
        """Writes what a job prints, from its first line until it ends. Reconnects if a connection breaks.

        Args:
            job_id: The job.
            write: Receives the text in pieces.

        Returns:
            The exit code of the job's command.

        Raises:
            BadInput: There is no such job.
            FednarError: The cluster has not answered for ``PATIENCE_SECONDS``.
        """
        reader, last_answer = _Reader(self._client, job_id, write), time.monotonic()
        broken: tuple[type[Exception], ...] = (OSError, RuntimeError, RayUnavailable, *_list_connection_errors())
        with _translate_errors(self.address):
            self._client.get_job_info(job_id)
        while True:
            try:
                asyncio.run(reader.read())
                job = self._get_summary(job_id)
                if job.status not in ("pending", "running"):
                    return _get_exit_code(job)
                last_answer = time.monotonic()
            except broken as error:
                if time.monotonic() - last_answer > PATIENCE_SECONDS:
                    text = f"{self.address} no longer answers: {error}"
                    raise FednarError(
                        f"{text}; the job continues if the cluster is alive: {describe_reattach(job_id)}"
                    ) from error
            time.sleep(POLL_SECONDS)

    def stop(self, job_id: str) -> JobSummary:
        """Stops a job and waits until it has ended, which takes some seconds if it writes a checkpoint.

        Raises:
            BadInput: There is no such job.
        """
        with _translate_errors(self.address):
            self._client.stop_job(job_id)
        while (job := self._get_summary(job_id)).status in ("pending", "running"):
            time.sleep(POLL_SECONDS)
        return job

    def list_jobs(self) -> list[JobSummary]:
        """Returns the jobs that were submitted, the newest first."""
        with _translate_errors(self.address):
            known = [_summarize(details) for details in self._client.list_jobs() if details.type.value == SUBMISSION]
        return sorted(known, key=lambda job: job.started or 0, reverse=True)

    def _get_summary(self, job_id: str) -> JobSummary:
        with _translate_errors(self.address):
            return _summarize(self._client.get_job_info(job_id))


class _Reader:
    """Reads a job's log from its start, as often as necessary, and writes each character once."""

    def __init__(self, client: Any, job_id: str, write: Callable[[str], None]) -> None:
        self._client, self._job_id, self._write = client, job_id, write
        self._written = 0

    async def read(self) -> None:
        """Reads until the log ends, or until nothing new has come for ``SILENCE_SECONDS``."""
        texts, read = self._client.tail_job_logs(self._job_id), 0
        with suppress(TimeoutError, StopAsyncIteration):
            while True:
                text = await asyncio.wait_for(anext(texts), SILENCE_SECONDS)
                fresh = text[max(0, self._written - read) :]
                read += len(text)
                self._write(fresh)
                self._written += len(fresh)


def describe_reattach(job_id: str) -> str:
    """Returns the commands that follow and stop a job."""
    return f"follow it with: fednar logs {job_id} --follow; stop it with: fednar stop {job_id}"


def _find_address(given: str | None) -> str:
    ray_address = os.environ.get("RAY_ADDRESS", "")
    address = (
        given
        or os.environ.get(ADDRESS_VARIABLE)
        or (ray_address if ray_address.startswith("http") else DEFAULT_ADDRESS)
    )
    check_address("--address" if given else ADDRESS_VARIABLE, address)
    if not address.startswith(("http://", "https://")):
        raise BadInput(f"--address {address}: expected the address of a dashboard, such as http://head:8265")
    return address.rstrip("/")


def _check_answers(address: str) -> None:
    """Raises RayUnavailable if nobody answers soon. Ray's own client would wait forever."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_SECONDS).close()  # noqa: S310 - http only
    except urllib.error.HTTPError:
        return  # a server answers; Ray's client explains why it refuses
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = f"no dashboard of Ray answers at {address}: {reason}"
        raise RayUnavailable(
            f"{text}; the dashboard is part of ray[default], and listens at the --dashboard-host of ray start --head"
        ) from error


def _check_installed() -> None:
    try:
        for module in ("aiohttp", "requests", "ray.job_submission"):
            importlib.import_module(module)
    except ImportError as error:
        raise BadInput(f"jobs need ray[default] (pip install 'fednar-ray[cluster]'): {error}") from error


def _build_client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    return JobSubmissionClient(address)


def _list_connection_errors() -> tuple[type[Exception], ...]:
    import aiohttp
    import requests

    return requests.RequestException, aiohttp.ClientError


@contextmanager
def _translate_errors(address: str) -> Iterator[None]:
    """Turns what Ray's client raises into RayUnavailable, or into BadInput if there is no such job."""
    from ray.exceptions import AuthenticationError

    unreachable: tuple[type[Exception], ...] = (OSError, ValueError, *_list_connection_errors())
    try:
        yield
    except AuthenticationError as error:
        how = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        raise RayUnavailable(f"Ray at {address} refuses access: {first_line(error)}; {how}") from error
    except RuntimeError as error:
        if "status code 404" in str(error) and "does not exist" in str(error):
            raise BadInput(f"{address} has no such job; list the jobs with: fednar jobs") from error
        raise RayUnavailable(f"Ray at {address}: {first_line(error)}") from error
    except unreachable as error:
        raise RayUnavailable(f"Ray at {address}: {first_line(error)}") from error


def _summarize(details: Any) -> JobSummary:
    return JobSummary(
        job_id=details.submission_id,
        status=details.status.value.lower(),
        exit_code=details.driver_exit_code,
        command=details.entrypoint,
        started=details.start_time,
        ended=details.end_time,
    )


def _get_exit_code(job: JobSummary) -> int:
    """Returns the exit code as a shell would, or 1 if the command never ran."""
    if job.status == "stopped":
        return STOPPED_EXIT_CODE
    if job.exit_code is None:
        return 0 if job.status == "succeeded" else 1
    return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code
