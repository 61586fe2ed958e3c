"""Sends the records of many runs, such as a search's trials, to MLflow in one thread and in as few calls as possible.

A call costs MLflow's database as much as about 70 metrics. So rounds wait until they fill a call, are due, or many of
all runs wait.
"""

import gc
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from fednar_ray.tracking.batch import METRICS_PER_CALL
from fednar_ray.tracking.delivery import Delivery
from fednar_ray.tracking.outage import FIRST_PAUSE_SECONDS, Outage
from fednar_ray.tracking.sender import PATIENCE_SECONDS, THREAD_NAME, is_from_another_thread

LONGEST_WAIT_SECONDS = 10.0  # that a round of an open run waits
MOST_WAITING_METRICS = 30_000  # of all runs together: about three seconds of a database's work
POLL_SECONDS = 0.2


class SharedSender:
    """A thread that calls MLflow for many runs. Used as a context manager, whose end waits for all calls.

    The thread also makes the calls that are given to ``submit``, in their order and before anything else. Meanwhile,
    the garbage collector leaves out the objects that exist: MLflow makes thousands for each call, and would often have
    all objects of all libraries looked at, which takes an eighth of the time.

    Raises:
        Exception: Leaving it raises the first error of a submitted call, unless another error is being raised.
    """

    def __init__(self, uri: str) -> None:
        self._outage = Outage(uri)
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._errors: list[BaseException] = []
        self._runs: list[SharedRun] = []
        self._stopped = False
        self._next_try = self._away_since = 0.0  # while MLflow does not answer
        logging.getLogger("mlflow.store.db.utils").addFilter(is_from_another_thread)
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def __enter__(self) -> Self:
        gc.freeze()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        gc.unfreeze()
        if kind is None and self._errors:
            raise self._errors[0]

    def submit(self, call: Callable[[], None]) -> None:
        """Lets the thread make a call; at once if it is this thread."""
        if threading.current_thread() is self._thread:
            call()
            return
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()

    def attach(self, delivery: Delivery) -> "SharedRun":
        """Sends what a run owes from now on, until a submitted call closes the returned object."""
        run = SharedRun(self, delivery)
        with self._changed:
            self._runs.append(run)
        return run

    def detach(self, run: "SharedRun") -> None:
        """Stops sending for a run."""
        with self._changed:
            self._runs.remove(run)

    def _run(self) -> None:
        while (work := self._wait_for_work()) is not None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised at the end; the other runs are recorded
                self._errors.append(error)

    def _wait_for_work(self) -> Callable[[], object] | None:
        """Waits for the next call. Returns None once the thread is stopped and has made all submitted calls."""
        with self._changed:
            while not self._calls:
                if self._stopped:
                    return None
                run = self._choose(time.monotonic())
                if run is not None:
                    return run.send
                self._changed.wait(POLL_SECONDS)
            return self._calls.popleft()

    def _choose(self, now: float) -> "SharedRun | None":
        """Returns the run to send for next: among those that are due, the one with most to send."""
        if now < self._next_try:
            return None
        waiting = [run for run in self._runs if run.is_waiting(now)]
        crowded = sum(run.delivery.unsent_metrics for run in waiting) > MOST_WAITING_METRICS
        due = [run for run in waiting if crowded or run.is_due(now)]
        return max(due, key=lambda run: run.delivery.unsent_metrics, default=None)

    def try_step(self, delivery: Delivery, *, quiet: bool = False) -> bool:
        """Makes one call for a run. Returns whether MLflow answered."""
        try:
            delivery.step()
        except Exception as error:  # noqa: BLE001 - training continues after any error, and sending is repeated
            now = time.monotonic()
            if not self._outage.failures:
                self._away_since = now
            pause = self._outage.count_failure(error, quiet=quiet)
            self._next_try = now + (FIRST_PAUSE_SECONDS if now - self._away_since < PATIENCE_SECONDS else pause)
            return False
        self._next_try = 0.0
        self._outage.end(quiet=quiet)
        return True

    def wait_for_next_try(self, limit: float) -> bool:
        """Waits until the next call is worth a try. Returns False if MLflow has been away for too long.

        Args:
            limit: The time by ``time.monotonic`` after which no call is worth it.
        """
        now = time.monotonic()
        if now >= limit:
            return False
        if now >= self._next_try:
            return True
        if now - self._away_since >= PATIENCE_SECONDS:
            return False
        time.sleep(self._next_try - now)
        return True


class SharedRun:
    """One of the runs that a shared sender sends for, in the place of a sender of its own."""

    def __init__(self, sender: SharedSender, delivery: Delivery) -> None:
        self._sender, self.delivery = sender, delivery
        self._since: float | None = None  # time at which something was first found to wait

    def is_waiting(self, now: float) -> bool:
        """Returns whether there is something to send, or to confirm."""
        if not self.delivery.due:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None

    def is_due(self, now: float) -> bool:
        """Returns whether a call is worth it: it would be full, or cannot be shared, or something has waited long."""
        assert self._since is not None
        full = self.delivery.unsent_metrics >= METRICS_PER_CALL
        return full or self.delivery.has_single_operation or now - self._since >= LONGEST_WAIT_SECONDS

    def send(self) -> None:
        """Makes one call."""
        self._since = None
        self._sender.try_step(self.delivery)

    def wake(self) -> None:
        """Does nothing: an operation waits for rounds to share a call with."""

    def close(self, limit_seconds: float = math.inf) -> None:
        """Sends everything at once, as long as MLflow answers. Must be called by the sender's thread."""
        self._sender.detach(self)
        limit = time.monotonic() + limit_seconds
        while self.delivery.owes and self._sender.wait_for_next_try(limit):
            self._sender.try_step(self.delivery, quiet=True)
