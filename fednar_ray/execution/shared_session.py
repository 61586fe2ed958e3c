"""The one Ray session that calls without a session of their own share until the process ends."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fednar_ray.execution.session import RaySession, find_address


def open_session(session: RaySession | None) -> AbstractContextManager[RaySession]:
    """Returns the caller's session, or the one that all calls of this process without a session share.

    Both stay open afterwards.
    """
    return nullcontext(session) if session is not None else _borrow_shared()


@contextmanager
def _borrow_shared() -> Iterator[RaySession]:
    """Yields the shared session, which is opened if there is none.

    A local Ray keeps its actors for the next call. On a cluster of others, or one that the caller has initialized,
    they end with the call, so that their CPUs and GPUs are free in between.
    """
    shared = RaySession.shared
    if shared is None or shared.address != find_address(None):
        shutdown()
        RaySession.shared = shared = RaySession()
    try:
        yield shared
    finally:
        if not shared.owns_ray:
            shared.discard_idle()


def shutdown() -> None:
    """Ends the Ray that calls without ``session=`` share. Does nothing if there is none.

    ``fr.run``, ``fr.iter_rounds``, ``fr.compare`` and ``fr.tune`` start it when one of them first needs it, and it ends
    with the process. Ending it earlier frees its memory, and lets the next call start in other surroundings, such as
    with another ``CUDA_VISIBLE_DEVICES``. A Ray that this process has initialized by itself is left running.

    Examples:
        >>> result = fr.run(fr.load("digits"))
        >>> fr.shutdown()
    """
    if RaySession.shared is not None:
        RaySession.shared.close()
        RaySession.shared = None
