"""A finished run: its rounds, its model, and where it was recorded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import nn

from fednar_ray.config import Experiment
from fednar_ray.core.flat_params import FloatVector, load_buffers, load_parameters
from fednar_ray.core.module_state import copy_with_leaf_parameters
from fednar_ray.core.postprocessing import append_postprocessing
from fednar_ray.core.preprocessing import join_preprocessing
from fednar_ray.core.reports import RoundRecord
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.experiments.alerts import Alert, find_alerts
from fednar_ray.experiments.alerts.callback import compute_chance_level
from fednar_ray.experiments.iter_rounds import build_initial_state
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.experiments.run_start import ResumedRun
from fednar_ray.federated.server_state import FederationState
from fednar_ray.report.chart import describe_files, render_card
from fednar_ray.report.run_view import build_run_chart, build_run_frame, summarize_run, tabulate_run
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.stop_record import Stop, read_stop
from fednar_ray.tracking.ui_url import build_run_url


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result:
    """A finished run: its rounds, its model, and where it was recorded.

    A notebook shows it as a table and a curve.

    Examples:
        >>> result = fr.run(fr.load("digits"))
        >>> result.to_frame()["test_accuracy"].max()
        >>> result.plot("clip_fraction")
    """

    experiment: Experiment
    history: tuple[RoundRecord, ...]  # one record per round
    parameters: FloatVector  # [d] the final iterate
    model: nn.Module  # takes raw inputs; has the evaluated parameters (FedExP: the average of the last two iterates)
    run_id: str  # the id of the MLflow run
    tracking_uri: str
    directory: Path  # runs/<name>-<id>
    placement: str  # serial, pooled or dedicated
    places: tuple[ActorInfo, ...]  # where each actor lived; for dedicated by client; empty if no round was trained
    group_size: int  # C, how many clients were trained as one matrix
    compiled: bool  # whether each local step was one compiled program
    resumed_from_round: int | None  # None: the run was started by this process
    alerts: tuple[Alert, ...]  # what a person should look at
    client_names: tuple[str, ...]  # by client id; "0", "1", … if the clients have no names
    primary: str  # the metric that counts, without its split
    stop: Stop | None = None  # why a callback ended the run early; None: all rounds were trained

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the last round, by name."""
        return self.history[-1].metrics

    @property
    def parameters_sha256(self) -> str:
        """SHA-256 of the final parameters, flat little-endian float32."""
        return hashlib.sha256(np.ascontiguousarray(self.parameters, dtype="<f4").tobytes()).hexdigest()

    @property
    def url(self) -> str | None:
        """The run's page in MLflow's UI; None if MLflow is a local file, which ``fednar ui`` shows."""
        return build_run_url(self.tracking_uri, self.run_id)

    def to_frame(self) -> pd.DataFrame:
        """Returns the metrics as a data frame: one row per round, counted from 0, and one column per metric."""
        return build_run_frame(self.history)

    def plot(self, metric: str | None = None, *, axes: Axes | None = None) -> Axes:
        """Draws a metric over rounds.

        Args:
            metric: Its name, such as ``train_loss``. None: the primary metric, on all splits.
            axes: The matplotlib axes to draw into; None: new ones.

        Returns:
            The axes.

        Raises:
            BadInput: No round has the metric.
        """
        return build_run_chart(self.history, self.experiment.name, self.primary, metric).plot(axes)

    def __repr__(self) -> str:
        return f"<{self._summary}; {self.directory.name}>"

    @property
    def _summary(self) -> str:
        return summarize_run(self.experiment.name, self.history, self.primary, self.stop)

    def _repr_html_(self) -> str:
        """Returns the table and the curve that a notebook shows."""
        chart = build_run_chart(self.history, self.experiment.name, self.primary)
        notes = [f"{alert.name}: {alert.message}" for alert in self.alerts]
        notes.append(describe_files(self.directory, self.url))
        return render_card(self._summary, tabulate_run(self.history, self.primary), chart, notes)


def load_result(start: ResumedRun) -> Result:
    """Loads the result of a finished run from its last checkpoint. Nothing is trained or sent to MLflow."""
    prepared, resumption = start.prepared, start.resumption
    checkpoint, directory = resumption.checkpoint, resumption.ref.directory
    state = FederationState.from_checkpoint(checkpoint, build_initial_state(prepared))
    with lock_run_directory(directory), Journal(directory, prepared.experiment, lines=checkpoint.history) as journal:
        history = journal.get_records()
    return Result(
        experiment=prepared.experiment,
        history=history,
        parameters=state.now.server.parameters,
        model=build_final_model(prepared, state),
        run_id=resumption.run_id,
        tracking_uri=resumption.tracking_uri,
        directory=directory,
        placement=checkpoint.facts["placement"],
        places=(),
        group_size=checkpoint.facts["group_size"],
        compiled=checkpoint.facts["compiled"],
        resumed_from_round=checkpoint.next_round,
        alerts=find_alerts(
            prepared.experiment,
            history,
            compute_chance_level(prepared.federation),
            prepared.federation.client_names,
        ),
        client_names=prepared.federation.client_names,
        primary=prepared.primary,
        stop=read_stop(directory),
    )


def build_final_model(prepared: Prepared, state: FederationState) -> nn.Module:
    """Returns the model with the parameters that are evaluated, from raw inputs to outputs in the label's unit."""
    module = copy_with_leaf_parameters(prepared.model).cpu()
    load_parameters(module, prepared.algorithm.server.eval_params(state.now.server))
    load_buffers(module, state.now.buffers, prepared.traits.changed_buffers)
    federation = prepared.federation
    return append_postprocessing(join_preprocessing(federation.preprocessing, module.eval()), federation.target_scale)
