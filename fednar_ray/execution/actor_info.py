"""Where an actor runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActorInfo:
    """Where an actor lives.

    Attributes:
        node_id: Ray's id of the node.
        process_id: The actor's process on that node.
        gpus: The GPUs that Ray assigned to the actor, empty on the CPU.
        machine: What ``identify_machine`` returns there.
        public_key: The public key of the client that masks its updates here; None if none does.
    """

    node_id: str
    process_id: int
    gpus: tuple[str, ...]
    machine: str | None = None
    public_key: bytes | None = None
