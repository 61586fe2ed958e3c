"""The state of a federation between two rounds, and how it is written into a checkpoint and read back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.server_optimizers import ServerScalar, ServerState
from fednar_ray.checkpoint.store import Checkpoint, Snapshot
from fednar_ray.core.errors import CheckpointError
from fednar_ray.core.flat_params import BufferVector, FloatVector
from fednar_ray.federated.client_states import ClientStates

if TYPE_CHECKING:
    from fednar_ray.federated.collection import RoundStart

PARAMETERS, BUFFERS, SERVER = "parameters", "buffers", "server."
"""Names of the arrays in a checkpoint. SERVER is the prefix of the server optimizer's own vectors. Shared vectors have
the names that their algorithm declares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSide:
    """What the server holds between two rounds.

    Attributes:
        next_round: The next round to train.
        server: The state of the server optimizer, with the parameters.
        buffers: The averaged buffers, [b].
        shared: The vectors that the client correction shares, by name, [d] each.
        norm_bound: The bound of the next round's updates, if the server adapts it (``privacy.bound: adaptive``).
    """

    next_round: int
    server: ServerState
    buffers: BufferVector
    shared: Mapping[str, FloatVector]
    norm_bound: float | None = None


class FederationState:
    """The state of the server and of all clients. Both advance together, at the end of a round."""

    def __init__(self, now: ServerSide, clients: ClientStates) -> None:
        self._now, self.clients = now, clients
        self._then: ServerSide | None = None  # the next state, until all of it is current
        self._started: RoundStart | None = None

    @property
    def now(self) -> ServerSide:
        """The server's side after the last finished round."""
        if self._then is not None:  # Ctrl-C interrupted ``advance``; a last checkpoint is still written
            self._complete(self._then)
        return self._now

    @classmethod
    def start(
        cls,
        algorithm: Algorithm,
        parameters: FloatVector,
        buffers: BufferVector,
        clients: ClientStates,
        norm_bound: float | None = None,
    ) -> "FederationState":
        """Returns the state before round 0.

        Args:
            algorithm: Says what the server keeps.
            parameters: The initial parameters, [d].
            buffers: The initial values of the averaged buffers, [b].
            clients: Where the clients' states are kept; empty so far.
            norm_bound: The first bound of updates that the server adapts; None if it adapts none.
        """
        shared = {name: vector.init(parameters) for name, vector in algorithm.client.shared.items()}
        server = algorithm.server.init(parameters)
        now = ServerSide(next_round=0, server=server, buffers=buffers, shared=shared, norm_bound=norm_bound)
        return cls(now, clients)

    def keep_start(self, start: "RoundStart") -> "RoundStart":
        """Keeps the start of the next round for ``take_start``, and returns it."""
        self._started = start
        return start

    def take_start(self) -> "RoundStart | None":
        """Returns what ``keep_start`` kept of the next round, once."""
        started, self._started = self._started, None
        return started if started is not None and started.broadcast.round_index == self.now.next_round else None

    def advance(self, then: ServerSide) -> None:
        """Ends a round: makes ``then`` and the staged client states current."""
        self._then = then
        self._complete(then)

    def _complete(self, then: ServerSide) -> None:
        self.clients.commit(self._now.next_round)
        self._now, self._then = then, None

    def take_snapshot(self, history: Sequence[str], facts: Mapping[str, Any]) -> Snapshot:
        """Takes a snapshot of the state for a checkpoint.

        Args:
            history: One recorded line per finished round.
            facts: What else the checkpoint records about its run.
        """
        now, view = self.now, self.clients.view()
        server = {f"{SERVER}{name}": vector for name, vector in now.server.vectors.items()}
        scalars = {name: _to_json(value) for name, value in now.server.scalars.items()}
        return Snapshot(
            next_round=now.next_round,
            arrays={PARAMETERS: now.server.parameters, BUFFERS: now.buffers, **now.shared, **server},
            rows=view.versions,
            read_row=view.read,
            release=view.release,
            facts={
                **facts,
                "server": {
                    "scalars": scalars,
                    "server_lr": _to_json(now.server.server_lr),
                    "vectors": sorted(now.server.vectors),
                    "shared": sorted(now.shared),
                    **({} if now.norm_bound is None else {"norm_bound": now.norm_bound}),
                },
            },
            history=tuple(history),
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, start: "FederationState") -> "FederationState":
        """Returns the state that a checkpoint stores.

        Args:
            checkpoint: What was written. It must fit ``start`` (``find_differences``).
            start: The run's state before round 0. Its client states receive the checkpoint's rows.

        Raises:
            CheckpointError: A row of a client does not fit.
        """
        arrays, server, clients = checkpoint.arrays, checkpoint.facts["server"], start.clients
        vectors = {name.removeprefix(SERVER): array for name, array in arrays.items() if name.startswith(SERVER)}
        state = ServerState(
            parameters=arrays[PARAMETERS],
            vectors=vectors,
            scalars={name: _from_json(value) for name, value in server["scalars"].items()},
            server_lr=None if server["server_lr"] is None else _from_json(server["server_lr"]),
        )
        for client_id, version in checkpoint.rows.items():
            row = checkpoint.read_row(client_id)
            if row.shape != state.parameters.shape:
                raise build_contents_error(checkpoint, f"the row of client {client_id} has {len(row)} values")
            clients.restore(client_id, row, version)
        shared = {name: arrays[name] for name in start.now.shared}
        now = ServerSide(
            next_round=checkpoint.next_round,
            server=state,
            buffers=arrays[BUFFERS],
            shared=shared,
            norm_bound=server.get("norm_bound"),
        )
        return cls(now, clients)


def find_differences(checkpoint: Checkpoint, start: ServerSide) -> Iterator[str]:
    """Yields what is missing in a checkpoint or has another form. Later rounds may have added vectors and scalars."""
    wanted: dict[str, FloatVector | BufferVector] = {PARAMETERS: start.server.parameters, BUFFERS: start.buffers}
    wanted |= {f"{SERVER}{name}": vector for name, vector in start.server.vectors.items()}
    wanted |= start.shared
    for name, vector in wanted.items():
        found = checkpoint.arrays.get(name)
        if found is None:
            yield f"the array {name} is missing"
        elif (found.shape, found.dtype) != (vector.shape, vector.dtype):
            yield f"the array {name} is {found.dtype} of shape {found.shape}, not {vector.dtype} of {vector.shape}"
    for name in checkpoint.arrays:
        if name not in wanted and not name.startswith(SERVER):
            yield f"the array {name} is unknown to the algorithm"
    for name in start.server.scalars:
        if name not in checkpoint.facts["server"]["scalars"]:
            yield f"facts.server.scalars.{name} is missing"
    if start.norm_bound is not None and checkpoint.facts["server"].get("norm_bound") is None:
        yield "facts.server.norm_bound is missing"


def build_contents_error(checkpoint: Checkpoint, problem: str) -> CheckpointError:
    """Builds the error for a checkpoint that is undamaged, but has the wrong contents."""
    return CheckpointError(
        f"{checkpoint.name}: {problem}; it is not damaged, but was written by another version, or edited: resume with "
        "the version that wrote it, or start a new run"
    )


def _to_json(value: ServerScalar | None) -> float | list[float] | None:
    """Returns a scalar as JSON holds it; an array, such as FedExP's step size, becomes a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _from_json(value: float | list[float]) -> ServerScalar:
    return np.array(value, dtype=np.float64) if isinstance(value, list) else value
