"""Tells the user which node was lost, once, however many of its actors and calls fail."""

import logging
import time
from collections import Counter

import ray

log = logging.getLogger("fednar_ray")

SUSPICION_SECONDS = 120.0  # Ray declares a silent node dead after 15 s to a minute


class NodeLosses:
    """Finds out whether lost actors were lost together with their nodes.

    Ray reports the loss of an actor at once, but that of its node only after some missed health checks.

    Args:
        pinned: Whether the actors can start on their own node only, as those of silos.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._actors: Counter[str] = Counter()  # the lost actors of each node that may be lost, by the node's id
        self._since = 0.0

    def add_actor(self, node_id: str) -> None:
        """Notes that an actor of a node was lost."""
        self._actors[node_id] += 1
        self._since = time.monotonic()

    def report(self) -> None:
        """Logs one line for each node that Ray has declared dead since. Cheap if no actor was lost."""
        if not self._actors:
            return
        for node in ray.nodes():
            if node["NodeID"] in self._actors and not node["Alive"]:
                log.warning(self.describe(node["NodeManagerAddress"], self._actors.pop(node["NodeID"])))
        if time.monotonic() - self._since > SUSPICION_SECONDS:
            self._actors.clear()  # their nodes live: the actors alone were lost

    def describe(self, address: str, actors: int) -> str:
        """Returns the line about a node."""
        whose = "its actor starts" if actors == 1 else f"its {actors} actors start"
        return f"node {address} was lost; {whose} again {'when it is back' if self._pinned else 'elsewhere'}"
