"""The section ``execution``: where clients train."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fednar_ray.config.base import Count, Example, NonNegative, Positive, Settings, Size, check_number

Precision = Literal["float32", "tf32", "bfloat16"]


def _check_silo_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError("the name of a silo may contain only letters, digits, - and _")
    return name


def _read_switch(value: object) -> object:
    """Reads what YAML makes of a bare ``on`` or ``off``."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class SiloSettings(Settings):
    """A client that trains on the node that has its data."""

    resources: Annotated[
        Mapping[str, Annotated[float, BeforeValidator(check_number), Field(ge=1e-4)]], Example({"clinic_a": 1.0})
    ] = {}
    """Custom resources of that node, and the amount of each that the client's actor takes. {}: any node."""
    data: Annotated[str, Example("/data/clinic_a.csv")]
    """The absolute path, on that node, of the client's file or of a directory with only that file."""

    @model_validator(mode="after")
    def _check_data_and_resources(self) -> Self:
        if not self.data.startswith("/"):
            raise ValueError(f"data {self.data}: should be an absolute path on the silo's node")
        taken = sorted({"CPU", "GPU", "memory", "object_store_memory"} & self.resources.keys())
        if taken:
            raise ValueError(
                f"resources {', '.join(taken)}: only custom resources can be given; see cpus_per_actor, gpus_per_actor"
            )
        return self


class ExecutionSettings(Settings):
    """Where clients train."""

    placement: Annotated[Literal["auto", "serial", "pooled", "dedicated"], Example("serial")] = "auto"
    """serial: in this process. pooled: Ray actors that train any client. dedicated: one Ray actor per client, which
    keeps its examples. auto: the fastest that fits."""
    actors: Annotated[Literal["auto"] | Count, Example(4)] = "auto"
    """Number of actors. auto: as many as the cluster holds and the clients keep busy."""
    cpus_per_actor: Annotated[float, BeforeValidator(check_number), Field(ge=1e-4), Example(0.5)] = 1.0
    """CPUs that Ray reserves for each actor; the smallest amount is 0.0001."""
    gpus_per_actor: Annotated[Literal["auto"] | NonNegative, Example(0.25)] = "auto"
    """GPUs that Ray reserves for each actor. auto: an equal share of the GPUs; with ``actors: auto``, as many actors
    per GPU as its memory holds, at most 4."""
    strategy: Annotated[Literal["default", "pack", "spread"], Example("spread")] = "default"
    """Place actors on as few nodes as possible (pack), on as many as possible (spread), or as Ray does (default)."""
    autoscale: Annotated[bool, Example(True, "execution.actors=8")] = False
    """Start with the actors that fit, and add the others when nodes join. Otherwise all must fit from the start."""
    silos: Annotated[
        Annotated[Mapping[Annotated[str, AfterValidator(_check_silo_name)], SiloSettings], Field(min_length=1)] | None,
        Example({"clinic_a": {"resources": {"clinic_a": 1.0}, "data": "/data/clinic_a.csv"}}, "data.source=folder"),
    ] = None
    """For ``data.source: folder``: the clients by name, each with its node and its file there. They are numbered in the
    order of their names."""
    vectorize: Annotated[Literal["auto"] | Count, Example(5)] = "auto"
    """The number of clients that train as one matrix, C. auto: the fastest that fits in memory."""
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_read_switch), Example("on")] = "auto"
    """Compile each local step to one program, with torch and a C++ compiler, once per machine (half a minute). auto: if
    the planned rounds gain more than that. What cannot be compiled trains without, and the log says why."""
    precision: Annotated[Precision, Example("bfloat16")] = "float32"
    """In what clients are trained and evaluated. float32: as written, also on GPUs that would use TF32. tf32: matrix
    products and convolutions on a GPU of compute capability 8.0 or newer round their inputs to 10 bits of mantissa.
    bfloat16: the forward pass in bfloat16 (autocast), on a CPU or GPU; parameters, losses and updates stay float32."""
    retries: Annotated[Size, Example(5)] = 2
    """How often a failed call is retried, on another actor if there is one. A lost actor or node, an exception and a
    time-out are failures."""
    min_clients: Annotated[Count, Example(3)] = 1
    """Minimum number of clients per round. A round is aborted when failures leave fewer."""
    client_timeout_seconds: Annotated[Positive | None, Example(600.0)] = None
    """Seconds after which a call, which trains one client group, is given up with its actor. null: no limit."""
    capacity_timeout_seconds: Annotated[Positive, Example(1800.0)] = 300.0
    """Seconds that a run without a single actor waits for capacity to return."""
    state_memory_bytes: Annotated[Literal["auto"] | Size, Example(4_000_000_000)] = "auto"
    """Bytes of client states that are held in memory; the others are on disk, in the run directory. auto: a tenth of
    the memory that is free."""

    @model_validator(mode="after")
    def _check_gpu_share(self) -> Self:
        share = self.gpus_per_actor
        if isinstance(share, float) and share != 0 and (share < 1e-4 or (share > 1 and share != int(share))):
            raise ValueError(f"gpus_per_actor {share:g}: Ray gives whole GPUs, or a share from 0.0001 to 1")
        return self
