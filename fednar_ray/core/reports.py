"""The record of a round, which is stored, and its report, which callers of the round loop receive."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fednar_ray.core.exclusion import Exclusion
from fednar_ray.core.flat_params import BufferVector, FloatVector


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """The stored numbers of a finished round, without its vectors.

    Attributes:
        round_index: t, counted from 0.
        metrics: Values by name, such as ``train_loss`` or ``test_accuracy``.
        client_ids: The sampled clients that returned, in the order of sampling.
        exclusions: By client id, why the update of a client that returned is not part of the aggregate.
        step_norms: By client id, the client's mean ‖v‖ over its steps. At most 200 clients are stored.
        norm_quantiles: Quantiles of ‖v‖ over the steps of all included clients, at the levels
            ``core.step_norms.LEVELS``, before clipping. Empty if no client was included, or in an old record.
    """

    round_index: int
    metrics: Mapping[str, float]
    client_ids: tuple[int, ...]
    exclusions: Mapping[int, Exclusion]
    step_norms: Mapping[int, float] = field(default_factory=dict)
    norm_quantiles: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport(RoundRecord):
    """A finished round with the resulting model. All vectors are read-only.

    Attributes:
        parameters: The iterate after the server step, [d], in ``model.parameters()`` order.
        eval_params: The parameters that were evaluated, [d]. FedExP evaluates an average of two iterates.
        buffers: The averaged buffers (running statistics), [b].
    """

    parameters: FloatVector
    eval_params: FloatVector
    buffers: BufferVector

    def record(self) -> RoundRecord:
        """Returns the report without its vectors."""
        return RoundRecord(
            round_index=self.round_index,
            metrics=self.metrics,
            client_ids=self.client_ids,
            exclusions=self.exclusions,
            step_norms=self.step_norms,
            norm_quantiles=self.norm_quantiles,
        )
