"""A process that stores batches of metrics in MLflow's database, while this one trains.

MLflow computes a tenth of a second per 1,000 metrics. A thread takes that time from training, since only one thread of
a process runs Python at a time; another process takes it from an idle core. This module imports nothing that takes
long, so that a command can start the process first: it then also creates the database while PyTorch is imported.
"""

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import ClassVar, Self

from fednar_ray.core.store_uris import TRACKING_VARIABLE, is_database

SERVE = "from fednar_ray.tracking.database_server import serve; serve()"
MetricValues = tuple[str, float, int, int, str | None, str | None, str | None]
"""A metric's name, value, time in milliseconds, step, and its model's id, its data set's name and that one's digest."""


class DatabaseProcess:
    """The process, which creates the database as soon as it has started. Used as a context manager.

    Within it, all clients of MLflow in this process let it store their batches. It ends with this process, however that
    ends, and never in the middle of a call.

    Args:
        uri: The address of the tracking store; None: the one that MLflow is set to.
    """

    current: ClassVar["DatabaseProcess | None"] = None
    """The one that has been entered."""

    def __init__(self, uri: str | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a call that fails is repeated here, and says here what is wrong
            text=True,
            start_new_session=True,  # an interrupt of this process does not reach it
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: PT018
        self._calls, self._answers = self._process.stdin, self._process.stdout
        self._lock = threading.Lock()  # several threads send
        self._is_ready = self._has_ended = False
        self._write(uri)

    def __enter__(self) -> Self:
        DatabaseProcess.current = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process. One that is still creating the database ends afterwards, and is not waited for."""
        DatabaseProcess.current = None
        with self._lock:
            self._check_ready()
            with suppress(OSError):
                self._calls.close()
            if self._is_ready or self._has_ended:
                self._process.wait()
                self._answers.close()
            self._has_ended = True

    def log_batch(
        self, uri: str, run_id: str, metrics: Sequence[MetricValues], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> bool:
        """Stores a batch, and returns whether it is stored. It is not, at once, while the process is not ready.

        Args:
            uri: The address of the tracking store.
            run_id: The MLflow run.
            metrics: The metrics.
            params: The parameters of the run.
            tags: The tags of the run.
        """
        with self._lock:
            if not self._check_ready():
                return False
            try:
                self._write([uri, run_id, metrics, params, tags])
                return self._read() is True
            except BaseException:
                self._has_ended = True  # an answer that nobody has read would be taken for that of the next call
                raise

    def _check_ready(self) -> bool:
        """Returns whether the process can be called. It says so once, after it has opened the database."""
        if not (self._is_ready or self._has_ended) and select.select([self._answers], [], [], 0)[0]:
            self._is_ready = self._read() is True
        return self._is_ready and not self._has_ended

    def _write(self, message: object) -> None:
        try:
            self._calls.write(f"{json.dumps(message)}\n")
            self._calls.flush()
        except OSError:
            self._has_ended = True

    def _read(self) -> object:
        """Returns the next answer; None if the process has ended."""
        line = self._answers.readline()
        self._has_ended = self._has_ended or not line.endswith("\n")
        return None if self._has_ended else json.loads(line)


def open_database_process(uri: str | None) -> AbstractContextManager[object]:
    """Starts a ``DatabaseProcess``, or nothing where it would not help: for a server, and on a single core.

    Nor on Windows, where a pipe cannot be asked whether it has an answer.
    """
    address = uri or os.environ.get(TRACKING_VARIABLE)
    if sys.platform == "win32" or count_cores() == 1 or (address and not is_database(address)):
        return nullcontext()
    return DatabaseProcess(uri)


def count_cores() -> int:
    """Returns on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
