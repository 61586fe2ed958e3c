"""What is wrong with a run, seen from its rounds alone: an experiment and its records in, alerts out.

Pure; each kind at most once a run.
"""

from fednar_ray.experiments.alerts.checks import CHECKS
from fednar_ray.experiments.alerts.history import ChanceLevel
from fednar_ray.experiments.alerts.monitor import Alert, AlertMonitor, find_alerts

__all__ = ["CHECKS", "Alert", "AlertMonitor", "ChanceLevel", "find_alerts"]
