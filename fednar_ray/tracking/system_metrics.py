"""CPU, memory, disk, network and GPUs of the driver's machine, by MLflow's own monitor while a run is under way."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

ENDING_SECONDS = 3.0


@contextmanager
def system_metrics(wanted: bool | None, run_id: str, uri: str, *, resumed: bool) -> Iterator[None]:
    """MLflow's monitor on a run of the store at ``uri``; ``wanted`` None: as MLflow's environment variable says.

    It reports every ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` seconds (10), and stops for good once MLflow does not
    answer.  The run waits for it ``ENDING_SECONDS`` at most.
    """
    if not (MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() if wanted is None else wanted):
        yield
        return
    monitor = SystemMetricsMonitor(run_id, resume_logging=resumed, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        ending = Thread(target=monitor.finish, daemon=True)
        ending.start()
        ending.join(ENDING_SECONDS)
