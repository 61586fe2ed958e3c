"""Federated rounds: local training, aggregation, evaluation, and the loop over rounds. No Ray, and no MLflow."""
