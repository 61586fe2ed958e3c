"""What is kept of a run: in MLflow, and in the run's own directory.  MLflow lives only here."""
