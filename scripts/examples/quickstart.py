"""Train handwritten digits with FedNAR and with the usual clipping, and compare them.

The weight decay is badly chosen on purpose: FedNAR copes with it, the baseline does not.

    python scripts/examples/quickstart.py
"""

import fednar_ray as fr

SETTINGS = {
    "name": "quickstart",
    "data": {"source": "digits", "partition": {"kind": "dirichlet", "clients": 20, "alpha": 0.3}},
    "model": {"name": "mlp", "hidden": 64},
    "federation": {"rounds": 30, "clients_per_round": 10, "local_steps": 20, "batch_size": 16},
    "algorithm": {"name": "fedavg", "local_lr": 0.1},
    "regularizer": {"name": "fednar", "weight_decay": 0.03, "clip_bound": 0.3},
    "execution": {"placement": "serial"},  # in this process; "auto" trains on Ray actors, to the same bytes
}


def main() -> None:
    """Trains both, and prints the directory of the tracked run."""
    experiment = fr.Experiment.model_validate(SETTINGS)
    result = fr.run(experiment)  # tracked in MLflow and kept in ./runs
    print(f"fednar     test accuracy {result.metrics['test_accuracy']:.3f}  ({result.directory})")

    baseline = fr.Experiment.model_validate(SETTINGS | {"regularizer": SETTINGS["regularizer"] | {"name": "decoupled"}})
    *_, last = fr.iter_rounds(baseline)  # the same rounds, without tracking or files
    print(f"decoupled  test accuracy {last.metrics['test_accuracy']:.3f}")


if __name__ == "__main__":
    main()
