"""System metrics: CPU, memory, disk, network and GPUs of the driver's machine, by MLflow's own monitor."""

from threading import Thread

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from fednar_ray.core.callbacks import RoundCallback

ENDING_SECONDS = 3.0  # the longest that the end of a run waits for the monitor


class SystemMetrics(RoundCallback):
    """Records system metrics of a run every ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` seconds (10).

    MLflow's monitor stops permanently once MLflow does not answer.

    Args:
        enabled: Whether anything is recorded; None: as MLflow's environment variable says.
        run_id: MLflow's id of the run.
        uri: The tracking store.
        resumed: Whether the run was recorded before: steps are then counted on from there.
    """

    def __init__(self, enabled: bool | None, run_id: str, uri: str, *, resumed: bool) -> None:
        self._enabled = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() if enabled is None else enabled
        self._run_id, self._uri, self._resumed = run_id, uri, resumed

    def on_run_start(self) -> None:
        """Starts to record system metrics, if they are enabled."""
        if self._enabled:
            self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=self._resumed, tracking_uri=self._uri)
            self._monitor.start()

    def on_run_end(self) -> None:
        """Stops recording system metrics."""
        if self._enabled:
            ending = Thread(target=self._monitor.finish, daemon=True)
            ending.start()
            ending.join(ENDING_SECONDS)

    def on_error(self, error: BaseException) -> None:
        """Stops recording system metrics."""
        self.on_run_end()
