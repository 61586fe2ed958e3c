"""Clients that mask their updates, all in the driver's process: nothing is hidden here, but the bytes are the same."""

from collections.abc import Iterator, Mapping, Sequence

from fednar_ray.core.errors import SiloRefused
from fednar_ray.core.messages import ClientsLost, GroupTask
from fednar_ray.execution.failure_policy import FailurePolicy, describe_error
from fednar_ray.execution.serial import SerialPool
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.masking_trainer import MaskingTrainer
from fednar_ray.federated.scoring import Scorer
from fednar_ray.secure.messages import MaskedBroadcast, MaskedUpdate, Reveal, UnmaskRequest, UnmaskTask, Withheld
from fednar_ray.secure.plan import SecurePlan


class MaskingSerialPool(SerialPool):
    """A serial pool whose clients mask their updates.

    Attributes:
        run: What the clients call the run.
    """

    def __init__(
        self,
        trainer: GroupTrainer,
        scorer: Scorer,
        policy: FailurePolicy,
        warm_up: tuple[int, ...],
        plan: SecurePlan,
        clients: int,
    ) -> None:
        super().__init__(trainer, scorer, policy, warm_up)
        self.run, self._masking = plan.run, MaskingTrainer(trainer, plan, range(clients))

    def list_public_keys(self, client_ids: Sequence[int]) -> Mapping[int, bytes]:
        """Returns the public keys of the clients."""
        return {client_id: self._masking.get_public_key(client_id) for client_id in client_ids}

    def train_masked(
        self, request: MaskedBroadcast, tasks: Sequence[GroupTask]
    ) -> Iterator[MaskedUpdate | Withheld | ClientsLost]:
        """Yields the masked updates of ``tasks``, in their order."""
        return self._run(self._masking.train, request, tasks)

    def reveal(self, request: UnmaskRequest, tasks: Sequence[UnmaskTask]) -> Iterator[Reveal | ClientsLost]:
        """Yields the shares of ``tasks``, in their order."""
        for task in tasks:
            try:
                answer: Reveal | ClientsLost = self._masking.reveal(request, task)
            except SiloRefused as error:
                answer = ClientsLost(client_ids=task.client_ids, reason=describe_error(error))
            yield answer

    def close(self) -> None:
        """Deletes the keys of the clients."""
        self._masking.forget()
