"""The type that every data source returns."""

from dataclasses import dataclass

from fednar_ray.core.postprocessing import TargetScale
from fednar_ray.core.preprocessing import Preprocessing
from fednar_ray.data.columns import ColumnSummary
from fednar_ray.data.examples import Array
from fednar_ray.data.transforms import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set: training and test examples, and optionally the natural client of each example.

    Attributes:
        name: The data set's name.
        train_x: Training inputs, [N, …]: floats, integers (tokens), or uint8 images [N, channels, height, width].
        train_y: Training labels, [N]: classes from 0 (classification), 0 and 1 (binary), or numbers (regression).
        test_x: Test inputs, of the same form.
        test_y: Test labels, of the same form.
        groups: The natural client of each training example, [N], or None.
        test_groups: The natural client of each test example, or None. If only some of the groups are clients, the test
            set is the part of these groups.
        task: classification, binary or regression.
        transform: The normalization of uint8 images, or None.
        preprocessing: The preprocessing that x went through, or None. The saved model starts with it.
        target_scale: Mean and scale of the training labels of a regression, by which training scales labels; None: it
            does not. The labels of the source are not scaled.
        columns: Of tables, the summary of each input column over all training examples.
    """

    name: str
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    groups: Array | None = None
    test_groups: Array | None = None
    task: str = "classification"
    transform: Transform | None = None
    preprocessing: Preprocessing | None = None
    target_scale: TargetScale | None = None
    columns: tuple[ColumnSummary, ...] = ()
