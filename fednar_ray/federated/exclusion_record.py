"""Which clients a round has excluded so far, and what the log says about it."""

import logging
from dataclasses import dataclass, field

from fednar_ray.core.client_names import ClientNames, describe_client
from fednar_ray.core.exclusion import Exclusion

log = logging.getLogger("fednar_ray")


@dataclass(slots=True, kw_only=True)
class ExclusionRecord:
    """What a round knows of clients that are not part of its sums.

    Attributes:
        round_index: t.
        client_names: How messages call the clients.
        exclusions: By client id, why a client is excluded.
        quiet: Whether the log leaves out which clients are excluded, since who takes part is private.
    """

    round_index: int
    client_names: ClientNames = ()
    exclusions: dict[int, Exclusion] = field(default_factory=dict)
    quiet: bool = False

    def exclude(self, client_id: int, exclusion: Exclusion) -> None:
        """Notes why a client is excluded, and logs it."""
        self.warn(client_id, f"excluded: {exclusion}")
        self.exclusions[client_id] = exclusion

    def warn(self, client_id: int, text: str) -> None:
        """Logs a sentence about a client."""
        level = logging.DEBUG if self.quiet else logging.WARNING
        log.log(level, "round %d: %s %s", self.round_index, describe_client(client_id, self.client_names), text)
