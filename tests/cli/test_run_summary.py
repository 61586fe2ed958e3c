"""The summary of ``fednar run`` shows each number once."""

import pytest

from fednar_ray.cli.run import _is_repeated


@pytest.mark.parametrize(
    ("name", "metrics", "repeated"),
    [
        ("test_loss", {"test_loss": 0.5, "test_log_loss": 0.5}, True),
        ("test_log_loss", {"test_loss": 0.5, "test_log_loss": 0.5}, False),
        ("test_loss", {"test_loss": 0.7, "test_log_loss": 0.5}, False),  # a loss of the user's own
        ("test_loss", {"test_loss": 0.7, "test_rmse": 0.5}, False),
        ("train_loss", {"train_loss": 0.7}, False),
    ],
)
def test_the_loss_is_left_out_where_it_is_the_log_loss(name: str, metrics: dict[str, float], repeated: bool) -> None:
    assert _is_repeated(name, metrics) == repeated
