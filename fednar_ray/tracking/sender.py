"""The thread that delivers while the run trains: nothing waits for it but the run's end, and that not for long."""

import logging
import math
import threading
import time

from fednar_ray.tracking.arrival import describe_failure
from fednar_ray.tracking.delivery import Delivery

log = logging.getLogger("fednar_ray")

FLUSH_SECONDS = 2.0  # a batch of many rounds costs a quarter a round of what a round by itself does
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # between attempts while MLflow is away
PATIENCE_SECONDS = 3.0  # at the end, for an MLflow that is away
ANSWER_SECONDS, UPLOAD_BYTES_PER_SECOND = 10.0, 1e6  # a call that takes longer is taken for an MLflow that is away
THREAD_NAME = "fednar-mlflow"


def _not_of_a_sender(record: logging.LogRecord) -> bool:
    """A filter: MLflow logs a traceback whenever its database does not answer, and a sender says so once."""
    return record.threadName != THREAD_NAME


class Sender:
    """Delivers what is owed: rounds every FLUSH_SECONDS, operations at once, and both again after a failure.

    A daemon thread, so that the interpreter ends without it.
    """

    def __init__(self, delivery: Delivery, uri: str) -> None:
        self._delivery, self._uri = delivery, uri
        self._changed = threading.Condition()
        self._closing = self._stopped = False
        self._failures = 0  # since MLflow last answered
        self._told = False  # of its being away
        self._due = time.monotonic() + FLUSH_SECONDS  # for the next rounds, or the next attempt
        self._answer_due = math.inf  # of the call that is out
        logging.getLogger("mlflow.store.db.utils").addFilter(_not_of_a_sender)
        threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()

    def wake(self) -> None:
        """There is an operation to send."""
        with self._changed:
            self._changed.notify_all()

    def close(self, limit_seconds: float = math.inf) -> None:
        """Wait until all is delivered, for as long as MLflow answers; then the thread sends nothing more."""
        start = time.monotonic()
        with self._changed:
            self._closing, self._due = True, start
            self._changed.notify_all()
            try:
                while self._delivery.owes and not self._lost(start, limit_seconds):
                    self._changed.wait(0.05)
            finally:
                self._stopped = True
                self._changed.notify_all()

    def _lost(self, start: float, limit_seconds: float) -> bool:
        now = time.monotonic()
        away = self._failures > 0 or now > self._answer_due
        return now - start > limit_seconds or (away and now - start > PATIENCE_SECONDS)

    def _run(self) -> None:
        while self._awaited_work():
            try:
                self._delivery.step()
            except Exception as error:  # noqa: BLE001 - whatever it is, training goes on and it is tried again
                self._failed(error)
            else:
                self._answered()

    def _awaited_work(self) -> bool:
        """Wait until there is something to send now; False when there will be nothing more."""
        with self._changed:
            while not self._stopped:
                pause = self._pause()
                if pause <= 0:
                    upload_seconds = self._delivery.bytes_of_next_step() / UPLOAD_BYTES_PER_SECOND
                    self._answer_due = time.monotonic() + ANSWER_SECONDS + upload_seconds
                    return True
                self._changed.wait(pause)
            return False

    def _pause(self) -> float:
        """Seconds until the next call. Rounds come without a wake: a round costs no lock."""
        if not self._delivery.owes or not (self._closing or self._delivery.due):
            return FLUSH_SECONDS
        if self._delivery.unsent_operations and not self._failures:
            return 0.0
        return self._due - time.monotonic()

    def _answered(self) -> None:
        if self._delivery.in_doubt:
            self._sent_again()
            return
        with self._changed:
            back = self._told and not self._stopped
            self._failures, self._told, self._answer_due = 0, False, math.inf
            self._due = time.monotonic() + (0.0 if self._closing or self._delivery.behind else FLUSH_SECONDS)
            self._changed.notify_all()
        if back:
            log.warning("MLflow at %s answers again; what it missed is being sent", self._uri)

    def _sent_again(self) -> None:
        """Something that had not arrived was sent once more: whether MLflow answers is known when it has arrived."""
        with self._changed:
            self._answer_due, self._due = math.inf, time.monotonic()
            self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self._failures += 1
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1))
            self._due = time.monotonic() + (FIRST_PAUSE_SECONDS if self._closing else pause)
            self._answer_due = math.inf
            tell = self._failures > 1 and not self._told and not self._closing  # one failure is no outage
            self._told |= tell
        if tell:
            log.warning(
                "%s; training goes on, and what is recorded is sent later",
                describe_failure(self._uri, error),
            )
