"""``fednar tune``: a search file to Ray Tune, where a trial is one experiment, and MLflow from the driver."""
