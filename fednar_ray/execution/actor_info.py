"""Where an actor lives."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActorInfo:
    """A node, a process on it, and the GPUs that Ray assigned."""

    node_id: str
    process_id: int
    gpus: tuple[str, ...]
