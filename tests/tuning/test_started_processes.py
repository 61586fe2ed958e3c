"""On a local Ray of our own, Tune's trials take processes that have been started already."""

import os
from typing import Any

from ray import tune
from ray.tune.execution.class_cache import _ActorClassCache

from fednar_ray.execution.local_ray import VARIABLES
from fednar_ray.tuning.started_processes import use_started_processes


class Trial(tune.Trainable):  # type: ignore[misc]
    """Does nothing."""


def get_variables() -> Any:
    """Returns the environment variables that Tune gives to the processes of trials."""
    return _ActorClassCache().get(Trial)._default_options["runtime_env"].get("env_vars", {})


def test_trials_have_no_variables_of_their_own_for_which_ray_would_start_new_processes(monkeypatch: Any) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    before = get_variables()
    assert before.items() >= VARIABLES.items()  # Tune passes them on by itself
    with use_started_processes():
        assert get_variables() == {}
        assert os.environ.items() >= VARIABLES.items()
    assert get_variables() == before
