"""Data sets that ship with a dependency."""

import numpy as np

from fednar_ray.data.sources.source import Source


def digits() -> Source:
    """Handwritten digits: 1,797 grey images [1, 8, 8] in 0..1, ten classes; ships with scikit-learn.

    A fixed, stratified fifth (360 examples) is the test set. Source: E. Alpaydin and C. Kaynak, *Optical
    Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998 (CC BY 4.0; its test part).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    images = (x / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    split = train_test_split(images, y.astype(np.int64), test_size=0.2, stratify=y, random_state=0)
    return Source(name="digits", train_x=split[0], train_y=split[2], test_x=split[1], test_y=split[3])
