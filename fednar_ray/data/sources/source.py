"""What every source gives."""

from dataclasses import dataclass

from fednar_ray.core.preprocessing import Preprocessing
from fednar_ray.data.examples import Array
from fednar_ray.data.transforms import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set: x [N, …], labels y [N] as its task has them, and a natural group an example where it has one."""

    name: str
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    groups: Array | None = None  # [N]
    test_groups: Array | None = None  # of the test examples; where clients are some of the groups, they keep theirs
    task: str = "classification"
    transform: Transform | None = None  # of uint8 images: their normalization
    preprocessing: Preprocessing | None = None  # what led from raw inputs to x; the saved model begins with it
