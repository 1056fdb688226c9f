"""The 1,797 handwritten digits, 8x8 pixels, that ship inside scikit-learn."""

from __future__ import annotations

import numpy as np

from sparsetune.data.images import ArrayImages
from sparsetune.data.splits import Split, Splits, split_in_two

MEAN, STD = (0.3057,) * 3, (0.3760,) * 3


def read() -> Splits:
    """Read the digits, with a fixed fifth of each class as the test split."""
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    grey = np.rint(pictures.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    images = ArrayImages(np.repeat(grey, 3, axis=3))
    train, test = split_in_two(Split.whole(images, labels), share=0.2, seed=0)
    return Splits(train, test, tuple("0123456789"))
