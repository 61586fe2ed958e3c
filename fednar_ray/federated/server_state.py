"""Everything that the next round needs, and its way into a checkpoint and back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.server_optimizers import ServerScalar, ServerState
from fednar_ray.checkpoint.store import Checkpoint, Snapshot
from fednar_ray.core.errors import CheckpointError
from fednar_ray.core.flat_params import BufferVector, FloatVector
from fednar_ray.federated.client_states import ClientStates

PARAMETERS, BUFFERS, CONTROL, SERVER = "parameters", "buffers", "control", "server."
"""What the arrays of a checkpoint are called; SERVER begins the names of the server optimizer's own vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSide:
    """What the server holds between two rounds."""

    next_round: int
    server: ServerState
    buffers: BufferVector  # [b]
    control: FloatVector | None  # [d] SCAFFOLD's c


class FederationState:
    """The server's side and the clients' states; both move on together, at the end of a round."""

    def __init__(self, now: ServerSide, clients: ClientStates) -> None:
        self._now, self.clients = now, clients
        self._then: ServerSide | None = None  # of a round that is over, until all of it is taken over

    @property
    def now(self) -> ServerSide:
        """The server's side, after the last round that is over."""
        if self._then is not None:  # ``advance`` was interrupted: Ctrl-C, after which a checkpoint is still written
            self._take_over(self._then)
        return self._now

    @classmethod
    def initial(
        cls, algorithm: Algorithm, parameters: FloatVector, buffers: BufferVector, clients: ClientStates
    ) -> "FederationState":
        """The state before round 0."""
        control = np.zeros_like(parameters) if algorithm.local.uses_control else None
        server = algorithm.server.init(parameters)
        return cls(ServerSide(next_round=0, server=server, buffers=buffers, control=control), clients)

    def advance(self, then: ServerSide) -> None:
        """A round is over: what its clients staged becomes current."""
        self._then = then
        self._take_over(then)

    def _take_over(self, then: ServerSide) -> None:
        self.clients.commit(self._now.next_round)
        self._now, self._then = then, None

    def snapshot(self, history: Sequence[str], facts: Mapping[str, Any]) -> Snapshot:
        """For a checkpoint; ``history``: a line a finished round."""
        now, view = self.now, self.clients.view()
        server = {f"{SERVER}{name}": vector for name, vector in now.server.vectors.items()}
        control = {} if now.control is None else {CONTROL: now.control}
        scalars = {name: _listed(value) for name, value in now.server.scalars.items()}
        return Snapshot(
            next_round=now.next_round,
            arrays={PARAMETERS: now.server.parameters, BUFFERS: now.buffers, **control, **server},
            rows=view.versions,
            read_row=view.read,
            release=view.release,
            facts={
                **facts,
                "server": {
                    "scalars": scalars,
                    "server_lr": _listed(now.server.server_lr),
                    "vectors": sorted(now.server.vectors),
                },
            },
            history=tuple(history),
        )

    @classmethod
    def restored(cls, checkpoint: Checkpoint, start: "FederationState") -> "FederationState":
        """The state as it was written; the client states of ``start``, the state before round 0, take up the rows.

        The checkpoint must fit ``start`` (``find_differences``).  Raises CheckpointError where a client's row does not.
        """
        arrays, server, clients = checkpoint.arrays, checkpoint.facts["server"], start.clients
        vectors = {name.removeprefix(SERVER): array for name, array in arrays.items() if name.startswith(SERVER)}
        state = ServerState(
            parameters=arrays[PARAMETERS],
            vectors=vectors,
            scalars={name: _unlisted(value) for name, value in server["scalars"].items()},
            server_lr=None if server["server_lr"] is None else _unlisted(server["server_lr"]),
        )
        for client_id, version in checkpoint.rows.items():
            row = checkpoint.read_row(client_id)
            if row.shape != state.parameters.shape:
                raise other_contents(checkpoint, f"the row of client {client_id} has {len(row)} values")
            clients.restore(client_id, row, version)
        now = ServerSide(
            next_round=checkpoint.next_round, server=state, buffers=arrays[BUFFERS], control=arrays.get(CONTROL)
        )
        return cls(now, clients)


def find_differences(checkpoint: Checkpoint, start: ServerSide) -> Iterator[str]:
    """What a checkpoint lacks, or has in another form; vectors and scalars may have come up since the start."""
    wanted: dict[str, FloatVector | BufferVector] = {PARAMETERS: start.server.parameters, BUFFERS: start.buffers}
    wanted |= {f"{SERVER}{name}": vector for name, vector in start.server.vectors.items()}
    wanted |= {} if start.control is None else {CONTROL: start.control}
    for name, vector in wanted.items():
        found = checkpoint.arrays.get(name)
        if found is None:
            yield f"the array {name} is missing"
        elif (found.shape, found.dtype) != (vector.shape, vector.dtype):
            yield f"the array {name} is {found.dtype} of shape {found.shape}, not {vector.dtype} of {vector.shape}"
    if start.control is None and CONTROL in checkpoint.arrays:
        yield f"the array {CONTROL} is unknown to the algorithm"
    for name in start.server.scalars:
        if name not in checkpoint.facts["server"]["scalars"]:
            yield f"facts.server.scalars.{name} is missing"


def other_contents(checkpoint: Checkpoint, problem: str) -> CheckpointError:
    """The error of a checkpoint that is whole, and holds something else than it should."""
    return CheckpointError(
        f"{checkpoint.name}: {problem}; it is not damaged, but was written by another version, or edited: resume with "
        "the version that wrote it, or start a new run"
    )


def _listed(value: ServerScalar | None) -> float | list[float] | None:
    """A scalar as JSON holds it; an array, such as FedExP's step, as a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _unlisted(value: float | list[float]) -> ServerScalar:
    return np.array(value, dtype=np.float64) if isinstance(value, list) else value
