"""Writes checkpoints in the background, so that training does not wait for them."""

import threading

from fednar_ray.checkpoint.store import CheckpointStore, Snapshot
from fednar_ray.core.errors import CheckpointError


class BackgroundWriter:
    """Saves snapshots in a daemon thread. At most one snapshot waits, and a newer one replaces it.

    Every snapshot is released, whether it is saved, replaced, or fails to be saved.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot) -> None:
        """Schedules a snapshot to be saved, and returns immediately.

        Raises:
            CheckpointError: An earlier save failed; raised once. ``snapshot`` is saved nevertheless.
        """
        with self._changed:
            assert not self._closed, "the writer is closed"
            replaced, self._waiting = self._waiting, snapshot
            self._changed.notify()
        if replaced is not None:
            replaced.release()
        self._raise_error()

    def close(self, timeout: float | None = None) -> None:
        """Waits until everything is saved, and ends the thread.

        Args:
            timeout: The longest wait in seconds; None waits without a limit.

        Raises:
            CheckpointError: A save failed and no ``offer`` has raised it yet, or the time is over.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        self._raise_error()
        if self._thread.is_alive():
            raise CheckpointError(f"the last checkpoint was not written within {timeout:g} seconds")

    def _raise_error(self) -> None:
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while (snapshot := self._wait_for_next()) is not None:
            try:
                self._store.save(snapshot)
            except Exception as error:  # noqa: BLE001 - raised by the next call in the training thread
                with self._changed:
                    self._error = error

    def _wait_for_next(self) -> Snapshot | None:
        """Waits for the next snapshot and returns it; None once the writer is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closed)
            snapshot, self._waiting = self._waiting, None
            return snapshot
