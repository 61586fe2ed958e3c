"""The digits data set, which is part of the package."""

from importlib.resources import files

import numpy as np

from fednar_ray.data.sources.source import Source

TEST = 360  # the last rows of digits.csv are the test set, a stratified fifth


def load_digits() -> Source:
    """Loads handwritten digits: 1,797 gray images [1, 8, 8] with values in 0..1, ten classes.

    It is the data set of scikit-learn, which is not needed to read it. A fixed, stratified fifth (360 examples) is the
    test set.

    Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository,
    1998 (CC BY 4.0; its test part).
    """
    with (files("fednar_ray.data.sources") / "digits.csv").open() as file:
        rows = np.loadtxt(file, dtype=np.int64, delimiter=",")  # 64 pixels in 0..16 and the label
    images, y = (rows[:, :64] / 16.0).astype(np.float32).reshape(-1, 1, 8, 8), rows[:, 64]
    train_x, test_x = images[:-TEST].copy(), images[-TEST:].copy()
    return Source(name="digits", train_x=train_x, train_y=y[:-TEST].copy(), test_x=test_x, test_y=y[-TEST:].copy())
