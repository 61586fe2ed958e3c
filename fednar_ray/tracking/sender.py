"""Sends to MLflow in a thread while the run trains. Only the end of a run waits for it, for a limited time."""

import logging
import math
import threading
import time

from fednar_ray.tracking.delivery import Delivery
from fednar_ray.tracking.outage import FIRST_PAUSE_SECONDS, Outage

FLUSH_SECONDS = 2.0  # per round, a batch of many rounds costs a quarter of a single round
PATIENCE_SECONDS = 3.0  # how long the end of a run waits if MLflow does not answer
ANSWER_SECONDS, UPLOAD_BYTES_PER_SECOND = (
    10.0,
    1e6,
)  # the time of a call after which MLflow counts as unavailable
THREAD_NAME = "fednar-mlflow"


def is_from_another_thread(record: logging.LogRecord) -> bool:
    """Drops records of a sender: MLflow logs a traceback at each failed call, and a sender warns only once."""
    return record.threadName != THREAD_NAME


class Sender:
    """Sends rounds every FLUSH_SECONDS and operations immediately, and repeats both after a failure.

    The thread is a daemon, so it does not keep the process alive.
    """

    def __init__(self, delivery: Delivery, uri: str) -> None:
        self._delivery, self._outage = delivery, Outage(uri)
        self._changed = threading.Condition()
        self._closing = self._stopped = False
        self._due = time.monotonic() + FLUSH_SECONDS  # time of the next batch of rounds, or of the next attempt
        self._answer_due = math.inf  # time by which the running call should have returned
        logging.getLogger("mlflow.store.db.utils").addFilter(is_from_another_thread)
        threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()

    def wake(self) -> None:
        """Notifies the thread that there is an operation to send."""
        with self._changed:
            self._changed.notify_all()

    def close(self, limit_seconds: float = math.inf) -> None:
        """Waits until everything is sent, as long as MLflow answers, and then stops the thread."""
        start = time.monotonic()
        with self._changed:
            self._closing, self._due = True, start
            self._changed.notify_all()
            try:
                while self._delivery.owes and not self._should_give_up(start, limit_seconds):
                    self._changed.wait(0.05)
            finally:
                self._stopped = True
                self._changed.notify_all()

    def _should_give_up(self, start: float, limit_seconds: float) -> bool:
        now = time.monotonic()
        away = self._outage.failures > 0 or now > self._answer_due
        return now - start > limit_seconds or (away and now - start > PATIENCE_SECONDS)

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._delivery.step()
            except Exception as error:  # noqa: BLE001 - training continues after any error, and sending is repeated
                self._on_failure(error)
            else:
                self._on_answer()

    def _wait_for_work(self) -> bool:
        """Waits until there is something to send. Returns False once the thread is stopped."""
        with self._changed:
            while not self._stopped:
                pause = self._compute_pause()
                if pause <= 0:
                    upload_seconds = self._delivery.count_bytes_of_next_step() / UPLOAD_BYTES_PER_SECOND
                    self._answer_due = time.monotonic() + ANSWER_SECONDS + upload_seconds
                    return True
                self._changed.wait(pause)
            return False

    def _compute_pause(self) -> float:
        """Returns the seconds until the next call. Rounds do not wake the thread, so that a round needs no lock."""
        if not self._delivery.owes or not (self._closing or self._delivery.due):
            return FLUSH_SECONDS
        if self._delivery.unsent_operations and not self._outage.failures:
            return 0.0
        return self._due - time.monotonic()

    def _on_answer(self) -> None:
        if self._delivery.in_doubt:
            self._on_sent_again()
            return
        with self._changed:
            self._answer_due = math.inf
            self._due = time.monotonic() + (0.0 if self._closing or self._delivery.behind else FLUSH_SECONDS)
            self._outage.end(quiet=self._stopped)
            self._changed.notify_all()

    def _on_sent_again(self) -> None:
        """Asks at once for the confirmation of what was sent again, which shows whether MLflow answers."""
        with self._changed:
            self._answer_due, self._due = math.inf, time.monotonic()
            self._changed.notify_all()

    def _on_failure(self, error: Exception) -> None:
        with self._changed:
            pause = self._outage.count_failure(error, quiet=self._closing)
            self._due = time.monotonic() + (FIRST_PAUSE_SECONDS if self._closing else pause)
            self._answer_due = math.inf
