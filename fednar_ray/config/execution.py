"""The section ``execution``: where clients train."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fednar_ray.config.base import Count, NonNegative, Positive, Settings, Size, number


def _silo_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError("the name of a silo is of letters, digits, - and _")
    return name


class SiloSettings(Settings):
    """A client that is pinned to the node that has its data."""

    resources: Mapping[str, Annotated[float, BeforeValidator(number), Field(ge=1e-4)]] = {}
    """Custom resources of that node, and how much of each the client's actor takes; {}: any node will do."""
    data: str
    """The client's file on that node, or a directory with that one file."""

    @model_validator(mode="after")
    def _readable_from_anywhere(self) -> Self:
        if not self.data.startswith("/"):
            raise ValueError(f"data {self.data}: give an absolute path; it is read on the silo's node")
        taken = sorted({"CPU", "GPU", "memory", "object_store_memory"} & self.resources.keys())
        if taken:
            raise ValueError(f"resources {', '.join(taken)}: custom ones are meant; see cpus_per_actor, gpus_per_actor")
        return self


class ExecutionSettings(Settings):
    """Where clients train."""

    placement: Literal["auto", "serial", "pooled", "dedicated"] = "auto"
    actors: Literal["auto"] | Count = "auto"
    cpus_per_actor: Annotated[float, BeforeValidator(number), Field(ge=1e-4)] = 1.0  # Ray's resolution
    gpus_per_actor: Literal["auto"] | NonNegative = "auto"
    """auto: an equal share of the GPUs; with ``actors: auto`` as many actors a GPU as its memory holds, at most 4."""
    strategy: Literal["default", "pack", "spread"] = "default"
    """Actors on as few nodes as possible, or on as many; default: Ray's own way between the two."""
    autoscale: bool = False
    """Begin with the actors that fit, and take up the others as nodes join; else all must fit from the start."""
    silos: Annotated[Mapping[Annotated[str, AfterValidator(_silo_name)], SiloSettings], Field(min_length=1)] | None = (
        None
    )
    """The clients of source folder, in the order of their names, each with its node and its file there."""
    vectorize: Literal["auto"] | Count = "auto"
    """C, how many clients train as one matrix."""
    retries: Size = 2
    """How often what failed (an actor, a node, an exception, a time-out) is tried again, elsewhere if there is one."""
    min_clients: Count = 1
    """A round is aborted when failures leave fewer clients."""
    client_timeout_seconds: Positive | None = None
    """A call, which trains one group, that takes longer is given up, with its actor; null: it may take any time."""
    capacity_timeout_seconds: Positive = 300.0
    """How long a run without a single actor waits for capacity to return."""
    state_memory_bytes: Literal["auto"] | Size = "auto"
    """Client states beyond this much live on disk, in the run directory; auto: a quarter of the memory that is free."""

    @model_validator(mode="after")
    def _gpus_that_ray_can_share(self) -> Self:
        share = self.gpus_per_actor
        if isinstance(share, float) and share != 0 and (share < 1e-4 or (share > 1 and share != int(share))):
            raise ValueError(f"gpus_per_actor {share:g}: Ray gives whole GPUs, or a share from 0.0001 to 1")
        return self
