"""Client groups that are trained before the round asks for their updates."""

from dataclasses import replace

from fednar_ray.federated.trained_group import Trained

HELD_BYTES = 2**30
"""Maximum number of bytes that a trainer holds between the two phases of a round. Other groups are trained twice."""


class HeldGroups:
    """The trained client groups of one round, which wait for the call that sends their updates."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, tuple[int, ...]], Trained] = {}
        self._seconds_ahead = 0.0

    def add(self, round_index: int, trained: Trained) -> None:
        """Keeps a group, while there is memory. Groups of other rounds are dropped."""
        self._groups = {key: held for key, held in self._groups.items() if key[0] == round_index}
        if sum(held.nbytes for held in self._groups.values()) + trained.nbytes <= HELD_BYTES:
            # a copy: the next client group trains in the same memory
            held = replace(trained, delta=trained.delta.clone())
            self._groups[round_index, trained.metrics.client_ids] = held

    def add_ahead(self, round_index: int, trained: Trained) -> None:
        """Keeps a group that was trained before its round began."""
        self.add(round_index, trained)
        self._seconds_ahead += trained.metrics.train_seconds

    def find(self, round_index: int, client_ids: tuple[int, ...]) -> Trained | None:
        """Returns a group, and keeps it."""
        return self._groups.get((round_index, client_ids))

    def take(self, round_index: int, client_ids: tuple[int, ...]) -> Trained | None:
        """Returns a group, and drops it."""
        return self._groups.pop((round_index, client_ids), None)

    def take_seconds_ahead(self) -> float:
        """Returns how long groups took before their round began, since the last call."""
        seconds, self._seconds_ahead = self._seconds_ahead, 0.0
        return seconds

    def clear(self) -> None:
        """Drops all groups."""
        self._groups.clear()
        self._seconds_ahead = 0.0
