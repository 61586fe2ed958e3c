"""The section ``compare``: what ``fednar compare`` varies."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fednar_ray.config.algorithm import RegularizerName
from fednar_ray.config.base import Count, Example, NonNegative, Positive, Settings, check_number, read_switch


class CompareSettings(Settings):
    """What ``fednar compare`` varies; the ``compare`` section of a file."""

    regularizers: Annotated[
        tuple[RegularizerName, ...], Field(min_length=1), Example(("decoupled", "fednar", "coupled"))
    ] = ("decoupled", "fednar")
    """The regularizers that are compared; the table shows the difference to the first."""
    weight_decays: Annotated[Annotated[tuple[NonNegative, ...], Field(min_length=1)] | None, Example((0.001, 0.03))] = (
        None
    )
    """The weight decays that are compared. null: only the experiment's own."""
    seeds: Annotated[int, BeforeValidator(check_number), Field(ge=1, le=1000), Example(5)] = 3
    """The number of seeds, counted up from the experiment's seed. They vary training, validation examples and random
    partitions; all of them have the same test set."""
    target_accuracy: Annotated[float, BeforeValidator(check_number), Field(gt=0, le=1), Example(0.9)] = 0.8
    """For classification: the table shows the number of rounds until a run reached this test accuracy."""
    target_rmse: Annotated[Positive | None, Example(2.5)] = None
    """For regression: the same for this test RMSE, in the unit of the label. null: no target."""
    target: Annotated[
        Annotated[float, BeforeValidator(check_number)] | None, Example(0.75, "evaluation.primary=auc")
    ] = None
    """The same for any other primary metric, such as auc. null: no target."""
    final_rounds: Annotated[Count, Example(5)] = 10
    """The final value of the primary metric is the mean over this many last rounds."""

    pack: Annotated[Literal["auto", "off"] | Count, BeforeValidator(read_switch), Example(4)] = "auto"
    """Number of runs that this process trains together, as one matrix. auto: all of them, if clients are trained as a
    matrix that several runs fill, on this machine's CPU, and without actors of their own. off: one run at a time."""

    def get_target(self, metric: str) -> float | None:
        """Returns the target of a metric, by its name without the split; None if there is none."""
        targets = {"accuracy": self.target_accuracy, "rmse": self.target_rmse}
        return targets.get(metric, self.target)
