"""The reasons why a client's update is excluded from a round, as recorded values and as sentences."""

from dataclasses import dataclass
from enum import StrEnum


class ExclusionReason(StrEnum):
    """Why a client's update is not part of its round's aggregate. The values are recorded, so they never change."""

    NOT_FINITE = "not_finite"  # NaN or infinity in the loss or the update
    NORM_TOO_LARGE = "norm_too_large"  # screened: ‖Δ_i‖ is far above the round's median
    BUFFER_NOT_FINITE = "buffer_not_finite"  # NaN or infinity in a buffer that is averaged
    BUFFER_TOO_LARGE = "buffer_too_large"  # an integer buffer beyond 2^53, where float64 averages are not exact
    WRONG_SHAPE = "wrong_shape"  # the update does not fit the model
    FAILED = "failed"  # the client raised an error, ran out of time or lost its actor, in every attempt


_SENTENCES = {
    ExclusionReason.NOT_FINITE: "its loss or update is not finite",
    ExclusionReason.NORM_TOO_LARGE: "its update's norm is far above the round's median",
    ExclusionReason.BUFFER_NOT_FINITE: "a buffer is not finite after training",
    ExclusionReason.BUFFER_TOO_LARGE: "a buffer exceeds 2^53 after training, where averages are no longer exact",
    ExclusionReason.WRONG_SHAPE: "its update has the wrong shape",
    ExclusionReason.FAILED: "training failed",
}


@dataclass(frozen=True, slots=True)
class Exclusion:
    """One client's exclusion from a round. ``str()`` gives the sentence for logs and errors.

    Examples:
        >>> str(Exclusion(ExclusionReason.FAILED, "OSError: disk full"))
        'training failed: OSError: disk full'
    """

    reason: ExclusionReason
    detail: str = ""  # the numbers or the error behind the reason

    def __str__(self) -> str:
        sentence = _SENTENCES[self.reason]
        return f"{sentence}: {self.detail}" if self.detail else sentence
