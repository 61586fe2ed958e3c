"""The settings of an experiment by dotted key."""

import fednar_ray as fr
from fednar_ray.config import flatten_chosen_settings, flatten_settings


def test_chosen_settings_are_those_that_were_set_and_those_that_follow_from_the_preset():
    experiment = fr.Experiment.model_validate(
        {"federation": {"local_steps": 3}, "algorithm": {"name": "fedprox", "mu": 0.5}, "checkpoint": {"every": None}}
    )
    chosen, everything = flatten_chosen_settings(experiment), flatten_settings(experiment)
    assert chosen.items() <= everything.items()
    assert (chosen["federation.local_steps"], chosen["federation.rounds"]) == (3, everything["federation.rounds"])
    assert (chosen["algorithm.mu"], chosen["algorithm.server_lr"], chosen["regularizer.name"]) == (0.5, 1.0, "fednar")
    left_out = {key.partition(".")[0] for key in set(everything) - set(chosen)}
    assert {"execution", "aggregation", "evaluation"} <= left_out
    assert not {"algorithm", "regularizer", "seed", "name"} & left_out
