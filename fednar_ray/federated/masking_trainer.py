"""Trains one client and masks its update before anything leaves the process. No Ray here."""

from collections.abc import Sequence

from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import GroupTask
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.masked_vector import encode_update
from fednar_ray.secure.messages import MaskedBroadcast, MaskedUpdate, Reveal, UnmaskRequest, UnmaskTask, Withheld
from fednar_ray.secure.plan import SecurePlan
from fednar_ray.secure.silo import Silo


class MaskingTrainer:
    """Trains and masks for the clients that live in this process: one in an actor, all of them in a serial run.

    Args:
        trainer: Trains the clients.
        plan: What the clients have agreed on.
        client_ids: The clients that live here.
    """

    def __init__(self, trainer: GroupTrainer, plan: SecurePlan, client_ids: Sequence[int]) -> None:
        self._trainer, self.plan = trainer, plan
        self._silos = {client_id: Silo(plan, client_id) for client_id in client_ids}

    def get_public_key(self, client_id: int) -> bytes:
        """Returns the public key of a client."""
        return self._silos[client_id].public_key

    def train(self, request: MaskedBroadcast, task: GroupTask) -> MaskedUpdate | Withheld:
        """Trains one client, and returns its update under masks.

        Raises:
            SiloRefused: The update would not stay secret.
        """
        (client_id,) = task.client_ids
        trained = self._trainer.train_rows(request.broadcast, task)
        metrics = trained.metrics
        if not metrics.included[0] and request.broadcast.norm_bound is None:
            exclusion = metrics.exclusions.get(client_id, Exclusion(ExclusionReason.NOT_FINITE))
            return Withheld(client_ids=(client_id,), exclusion=exclusion)
        vector = encode_update(self.plan, trained, request.broadcast)
        packages = self._silos[client_id].mask(request.attempt, vector)
        return MaskedUpdate(
            client_ids=(client_id,), vector=vector, packages=packages, train_seconds=metrics.train_seconds
        )

    def reveal(self, request: UnmaskRequest, task: UnmaskTask) -> Reveal:
        """Returns the shares that one client reveals. Raises SiloRefused if an update would not stay secret."""
        (client_id,) = task.client_ids
        return self._silos[client_id].reveal(request, task)

    def forget(self) -> None:
        """Deletes the keys of the clients: the run has ended."""
        for silo in self._silos.values():
            silo.forget()
