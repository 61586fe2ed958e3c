"""Counts failed calls of MLflow, and says once that it is away and once that it is back."""

import logging

from fednar_ray.tracking.arrival import describe_failure

log = logging.getLogger("fednar_ray")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # between attempts while MLflow does not answer


class Outage:
    """Whether MLflow at an address answers."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.failures = 0  # in a row
        self._warned = False

    def count_failure(self, error: Exception, *, quiet: bool) -> float:
        """Counts a failed call, and returns the pause before the next one in seconds.

        Args:
            error: What the call raised.
            quiet: Whether not to warn, because the end of the run says what is missing.
        """
        self.failures += 1
        if self.failures > 1 and not self._warned and not quiet:  # a single failure is not an outage
            self._warned = True
            log.warning(
                "%s; training continues, and what is recorded is sent later",
                describe_failure(self._uri, error),
            )
        return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (self.failures - 1))

    def end(self, *, quiet: bool) -> None:
        """Says that MLflow answers again, if a warning said that it did not."""
        back = self._warned and not quiet
        self.failures, self._warned = 0, False
        if back:
            log.warning("MLflow at %s answers again; what it missed is being sent", self._uri)
