"""Records runs: in the run directory, and in MLflow. No other room imports MLflow."""
