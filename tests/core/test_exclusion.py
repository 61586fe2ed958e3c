"""Reasons for exclusion: their recorded values never change, and each has a message."""

import pytest

from fednar_ray.core.exclusion import Exclusion, ExclusionReason


def test_recorded_values_never_change() -> None:
    assert {reason.value for reason in ExclusionReason} == {
        "not_finite", "norm_too_large", "buffer_not_finite", "buffer_too_large", "wrong_shape", "failed",
    }  # fmt: skip


@pytest.mark.parametrize("reason", ExclusionReason)
def test_every_reason_has_a_message(reason: ExclusionReason) -> None:
    assert str(Exclusion(reason))
    assert str(Exclusion(reason, "because")) == f"{Exclusion(reason)}: because"
