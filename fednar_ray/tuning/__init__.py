"""Hyperparameter searches on Ray Tune: each trial is one experiment, and the driver records it in MLflow."""
