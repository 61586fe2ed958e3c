"""Starts Ray in the background, while this process imports PyTorch and loads the data."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class EarlyStart:
    """Calls ``start`` in a thread of its own.

    The thread lives until ``end``: on Linux the processes that it has started, such as Ray's, end with it. It does not
    keep an interrupted process from ending.

    Args:
        start: What to call.
    """

    def __init__(self, start: Callable[[], None]) -> None:
        self._started: Future[None] = Future()
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(start,), name="early start of Ray", daemon=True).start()

    def _run(self, start: Callable[[], None]) -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001 - raised by ``wait``
            self._started.set_exception(error)
        else:
            self._started.set_result(None)
            self._ended.wait()

    def wait(self) -> None:
        """Waits for ``start``, and raises its error."""
        self._started.result()

    def end(self) -> None:
        """Lets the thread end, and with it what it has started."""
        self._ended.set()
