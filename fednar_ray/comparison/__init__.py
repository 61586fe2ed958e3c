"""The same experiment under several regularizers and seeds: what FedNAR is worth, as a table and a chart."""

from fednar_ray.comparison.record import ComparisonRecord, find, find_newest, planned_runs
from fednar_ray.comparison.running import Comparison, Progress, compare
from fednar_ray.comparison.table import Row, paired

__all__ = [
    "Comparison",
    "ComparisonRecord",
    "Progress",
    "Row",
    "compare",
    "find",
    "find_newest",
    "paired",
    "planned_runs",
]
