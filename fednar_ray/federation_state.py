"""Everything that the next round needs, and its way into a checkpoint and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednar_ray.algorithms.registry import Algorithm
from fednar_ray.algorithms.server_rules import ServerScalar, ServerState
from fednar_ray.checkpoint.store import Checkpoint, Snapshot
from fednar_ray.client_states import ClientStates
from fednar_ray.vectors import BufferVector, FloatVector


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
        server = {f"server.{name}": vector for name, vector in now.server.vectors.items()}
        control = {} if now.control is None else {"control": now.control}
        scalars = {name: _listed(value) for name, value in now.server.scalars.items()}
        return Snapshot(
            next_round=now.next_round,
            arrays={"parameters": now.server.parameters, "buffers": now.buffers, **control, **server},
            rows=view.versions,
            read_row=view.read,
            release=view.release,
            facts={**facts, "server": {"scalars": scalars, "server_lr": _listed(now.server.server_lr)}},
            history=tuple(history),
        )

    @classmethod
    def restored(cls, checkpoint: Checkpoint, clients: ClientStates) -> "FederationState":
        """The state as it was written; ``clients`` takes up the rows."""
        arrays, server = checkpoint.arrays, checkpoint.facts["server"]
        vectors = {name.removeprefix("server."): array for name, array in arrays.items() if name.startswith("server.")}
        state = ServerState(
            parameters=arrays["parameters"],
            vectors=vectors,
            scalars={name: _unlisted(value) for name, value in server["scalars"].items()},
            server_lr=None if server["server_lr"] is None else _unlisted(server["server_lr"]),
        )
        for client_id, version in checkpoint.rows.items():
            clients.restore(client_id, checkpoint.read_row(client_id), version)
        now = ServerSide(
            next_round=checkpoint.next_round, server=state, buffers=arrays["buffers"], control=arrays.get("control")
        )
        return cls(now, clients)


def _listed(value: ServerScalar | None) -> float | list[float] | None:
    """A scalar as JSON holds it; an array, such as FedExP's step, as a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _unlisted(value: float | list[float]) -> ServerScalar:
    return np.array(value, dtype=np.float64) if isinstance(value, list) else value
