"""How spent privacy is written where people read it."""

from fednar_ray.core.private_metrics import describe_privacy, describe_spending, format_epsilon

SECRET = {"privacy/epsilon": 3.214, "privacy/noise_multiplier": 1.1}
PUBLIC = {**SECRET, "privacy/simulated": 1.0}


def test_a_simulated_epsilon_is_called_simulated_wherever_it_is_written() -> None:
    assert format_epsilon(SECRET) == "ε 3.21"
    assert format_epsilon(PUBLIC) == "ε 3.21 (simulated)"
    assert format_epsilon({"train_loss": 1.0}) == ""
    assert describe_privacy(SECRET, 1e-5, 8.0) == "privacy: ε 3.21 of 8 at δ 1e-05 spent, noise multiplier 1.1"
    assert describe_privacy(PUBLIC, 1e-5, None).endswith(
        "the noise follows from the public seed, so nobody is protected"
    )


def test_what_several_runs_spend_adds_up() -> None:
    told = describe_spending([PUBLIC, PUBLIC, {"train_loss": 1.0}], times=2)
    assert told is not None
    assert told.startswith("privacy: ε 12.9 (simulated) spent by 4 runs together; a search on public data")  # 4 · 3.214
    assert describe_spending([{"train_loss": 1.0}]) is None
