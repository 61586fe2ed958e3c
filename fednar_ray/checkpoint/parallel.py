"""Runs a few transfers at a time."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")

THREADS = 4


def for_each(function: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Calls ``function`` on every item, in up to THREADS threads.

    After the first error no further call starts, and the error is raised when the running calls have ended. The
    threads are daemons, unlike those of an executor: a transfer that hangs does not keep the process alive.
    """
    source = iter(list(items))  # a list's iterator gives each item to one thread only
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for item in source:
                if errors:
                    return
                function(item)
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=work, name="checkpoint", daemon=True) for _ in items[:THREADS]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
