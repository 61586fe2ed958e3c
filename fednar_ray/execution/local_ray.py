"""How a local Ray of our own is started: its options, and the processes that it goes without."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MOST_INLINED_BYTES = 2**20
"""What travels within a message (Ray's limit is 100 KB): small models never wait for the object store."""
PRELOADED = ("fednar_ray.execution.actor",)
"""What Ray's processes import as soon as they start, before they become actors: PyTorch takes seconds."""
PRELOADED_FOR_TRIALS = ("fednar_ray.tuning.pack", "fednar_ray.tuning.trial")
"""The same for a search, whose first processes train trials."""
VARIABLES = {"RAY_CHDIR_TO_TRIAL_DIR": "0"}
"""Environment variables of all processes of a local Ray: trials work in the directory of their search's command."""
MOST_PRELOADED = 8  # CPUs: Ray starts a process for each, and on larger machines a run may use few of them
UNUSED = ("start_monitor", "start_log_monitor")
"""Methods of Ray's node that start a process which nothing here uses."""


def build_local_options(cpus: int | None, preloaded: Sequence[str] = PRELOADED) -> dict[str, Any]:
    """Returns the options of ``ray.init`` for a local Ray on a machine with so many CPUs.

    Args:
        cpus: The number of CPUs; None if it is not known.
        preloaded: The modules that Ray's processes import as soon as they start.
    """
    return {
        "include_dashboard": False,
        "_system_config": {
            "max_direct_call_object_size": MOST_INLINED_BYTES,
            "preload_python_modules": list(preloaded) if (cpus or 1) <= MOST_PRELOADED else [],
        },
    }


@contextmanager
def skip_unused_processes() -> Iterator[None]:
    """Keeps a local Ray from starting two processes: the autoscaler, which has no nodes to add, and the reader of logs.

    Each takes a second of a core and 50 MB. No setting of Ray turns them off.
    """
    from ray._private.node import Node

    starts = {name: getattr(Node, name) for name in UNUSED if hasattr(Node, name)}
    for name in starts:
        setattr(Node, name, lambda node: None)
    try:
        yield
    finally:
        for name, start in starts.items():
            setattr(Node, name, start)
