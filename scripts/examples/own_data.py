"""Train on your own arrays: one pair (x, y) per client, by name.

Three hospitals of different size and with different patients predict an outcome from four measurements.

    python scripts/examples/own_data.py
"""

import numpy as np

import fednar_ray as fr


def make_patients(rng: np.random.Generator, count: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws measurements x, [count, 4] float32, and outcomes y, [count], 0 or 1."""
    y = rng.integers(2, size=count)
    x = rng.normal(loc=shift, size=(count, 4)) + 1.5 * y[:, None]
    return x.astype(np.float32), y


def main() -> None:
    """Trains a logistic regression and prints its accuracy after every round."""
    rng = np.random.default_rng(0)
    federation = fr.Federation(
        clients={
            "north": make_patients(rng, 200, 0.0),
            "south": make_patients(rng, 40, 0.8),
            "west": make_patients(rng, 90, -0.8),
        },
        test=make_patients(rng, 500, 0.0),
        task="binary",
    )
    experiment = fr.Experiment.model_validate(
        {
            "model": {"name": "logistic"},
            "federation": {"rounds": 10, "local_epochs": 1, "batch_size": 10},
            "algorithm": {"name": "scaffold", "local_lr": 0.1},
            "execution": {"placement": "serial"},
        }
    )
    for report in fr.iter_rounds(experiment, federation=federation):
        print(f"round {report.round_index + 1}: test accuracy {report.metrics['test_accuracy']:.3f}")
    print(f"clients: {', '.join(federation.client_names)}")


if __name__ == "__main__":
    main()
