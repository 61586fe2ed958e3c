"""Ray's job API: submit, follow, list and stop. It is imported here alone."""

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
SILENCE_SECONDS = 60.0  # without a line; then the connection is made anew, since it may be dead
PATIENCE_SECONDS = 120.0  # with a cluster that does not answer, while a job is followed
POLL_SECONDS = 0.5
NO_AGENT, STARTING_SECONDS = "No available agent", 60.0  # what a head that has just started says, and for how long
STOPPED_EXIT_CODE = 143  # as of a command that SIGTERM ended
STOP_VARIABLES = {"RAY_JOB_STOP_WAIT_TIME_S": "20"}  # Ray's 3 s would kill a run that writes its last checkpoint
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging",
)  # fmt: skip
SUBMISSION = "SUBMISSION"  # the type of the jobs that the API knows by their ids


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A job in a line of a table."""

    job_id: str
    status: str  # pending, running, succeeded, failed or stopped
    exit_code: int | None
    command: str
    started: int | None  # ms since the epoch


class Jobs:
    """The jobs of a cluster. Making one looks whether the cluster answers, and lets us in.

    ``address``: of the cluster's dashboard, http://head:8265; None takes ``RAY_API_SERVER_ADDRESS``, then
    ``RAY_ADDRESS`` where it is such an address, then this machine's.  Raises RayUnavailable.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _address(address)
        _check_installed()
        _check_answers(self.address)
        os.environ[ADDRESS_VARIABLE] = self.address  # Ray prefers its variables to what it is given
        with _answering(self.address):
            self._client = _client(self.address)

    def submit(self, command: str, *, job_id: str, directory: Path, variables: Mapping[str, str]) -> None:
        """Start a shell command as a job, in a copy of ``directory``, with environment ``variables``."""
        environment = {"working_dir": str(directory), "env_vars": {**STOP_VARIABLES, **variables}}
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                with _answering(self.address):
                    self._client.submit_job(entrypoint=command, submission_id=job_id, runtime_env=environment)
                return
            except RayUnavailable as error:
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def logs(self, job_id: str) -> str:
        """What a job has printed so far. Raises BadInput where there is no such job."""
        with _answering(self.address):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, write: Callable[[str], None]) -> int:
        """Write what a job prints, from its first line until it ends; returns its exit code.

        A connection that breaks is made anew. Raises BadInput where there is no such job, and FednarError where the
        cluster does not answer for ``PATIENCE_SECONDS``.
        """
        reader, heard = _Reader(self._client, job_id, write), time.monotonic()
        broken: tuple[type[Exception], ...] = (OSError, RuntimeError, RayUnavailable, *_connection_errors())
        with _answering(self.address):
            self._client.get_job_info(job_id)
        while True:
            try:
                asyncio.run(reader.read())
                job = self._summary(job_id)
                if job.status not in ("pending", "running"):
                    return _exit_code(job)
                heard = time.monotonic()
            except broken as error:
                if time.monotonic() - heard > PATIENCE_SECONDS:
                    text = f"{self.address} does not answer any more: {error}"
                    raise FednarError(
                        f"{text}; where the cluster lives, the job goes on: {describe_reattach(job_id)}"
                    ) from error
            time.sleep(POLL_SECONDS)

    def stop(self, job_id: str) -> JobSummary:
        """End a job, which may take some seconds to write where it stands. Raises BadInput where there is no such."""
        with _answering(self.address):
            self._client.stop_job(job_id)
        while (job := self._summary(job_id)).status in ("pending", "running"):
            time.sleep(POLL_SECONDS)
        return job

    def list_jobs(self) -> list[JobSummary]:
        """Those that were submitted, the newest first."""
        with _answering(self.address):
            known = [_summary(details) for details in self._client.list_jobs() if details.type.value == SUBMISSION]
        return sorted(known, key=lambda job: job.started or 0, reverse=True)

    def _summary(self, job_id: str) -> JobSummary:
        with _answering(self.address):
            return _summary(self._client.get_job_info(job_id))


class _Reader:
    """Reads a job's log from its start, as often as need be, and writes each character once."""

    def __init__(self, client: Any, job_id: str, write: Callable[[str], None]) -> None:
        self._client, self._job_id, self._write = client, job_id, write
        self._written = 0

    async def read(self) -> None:
        """Until the log ends, or is silent for long."""
        texts, read = self._client.tail_job_logs(self._job_id), 0
        with suppress(TimeoutError, StopAsyncIteration):
            while True:
                text = await asyncio.wait_for(anext(texts), SILENCE_SECONDS)
                fresh = text[max(0, self._written - read) :]
                read += len(text)
                self._write(fresh)
                self._written += len(fresh)


def describe_reattach(job_id: str) -> str:
    """How to follow a job once more."""
    return f"fednar logs {job_id} --follow shows it again, fednar stop {job_id} ends it"


def _address(given: str | None) -> str:
    joined = os.environ.get("RAY_ADDRESS", "")
    address = given or os.environ.get(ADDRESS_VARIABLE) or (joined if joined.startswith("http") else DEFAULT_ADDRESS)
    check_address("--address" if given else ADDRESS_VARIABLE, address)
    if not address.startswith(("http://", "https://")):
        raise BadInput(f"--address {address}: the address of a dashboard is needed, such as http://head:8265")
    return address.rstrip("/")


def _check_answers(address: str) -> None:
    """Whether anybody answers at all, and soon; Ray's own client would wait without end."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_SECONDS).close()  # noqa: S310 - http only
    except urllib.error.HTTPError:
        return  # refusals are Ray's to explain
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = f"no dashboard of Ray answers at {address}: {reason}"
        raise RayUnavailable(
            f"{text}; it is part of ray[default], and listens where ray start --head has its --dashboard-host"
        ) from error


def _check_installed() -> None:
    try:
        for module in ("aiohttp", "requests", "ray.job_submission"):
            importlib.import_module(module)
    except ImportError as error:
        raise BadInput(f"jobs need ray[default] (pip install 'fednar-ray[cluster]'): {error}") from error


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return JobSubmissionClient(address)


def _connection_errors() -> tuple[type[Exception], ...]:
    import aiohttp
    import requests

    return requests.RequestException, aiohttp.ClientError


@contextmanager
def _answering(address: str) -> Iterator[None]:
    """What Ray's client raises, as RayUnavailable, or as BadInput where it knows no such job."""
    from ray.exceptions import AuthenticationError

    unreachable: tuple[type[Exception], ...] = (OSError, ValueError, *_connection_errors())
    try:
        yield
    except AuthenticationError as error:
        how = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        raise RayUnavailable(f"Ray at {address} does not let you in: {first_line(error)}; {how}") from error
    except RuntimeError as error:
        if "status code 404" in str(error) and "does not exist" in str(error):
            raise BadInput(f"{address} knows no such job; fednar jobs lists them") from error
        raise RayUnavailable(f"Ray at {address}: {first_line(error)}") from error
    except unreachable as error:
        raise RayUnavailable(f"Ray at {address}: {first_line(error)}") from error


def _summary(details: Any) -> JobSummary:
    return JobSummary(
        job_id=details.submission_id,
        status=details.status.value.lower(),
        exit_code=details.driver_exit_code,
        command=details.entrypoint,
        started=details.start_time,
    )


def _exit_code(job: JobSummary) -> int:
    """As a shell would give it; 1 where the command never ran."""
    if job.status == "stopped":
        return STOPPED_EXIT_CODE
    if job.exit_code is None:
        return 0 if job.status == "succeeded" else 1
    return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code
