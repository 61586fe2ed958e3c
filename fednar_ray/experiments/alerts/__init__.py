"""Alerts: what is wrong with a run, found from its experiment and the records of its rounds alone.

The checks are pure functions.  Each gives at most one alert per run.
"""

from fednar_ray.experiments.alerts.checks import CHECKS
from fednar_ray.experiments.alerts.history import ChanceLevel
from fednar_ray.experiments.alerts.monitor import Alert, AlertMonitor, find_alerts

__all__ = ["CHECKS", "Alert", "AlertMonitor", "ChanceLevel", "find_alerts"]
