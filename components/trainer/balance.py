"""Classes of which there are few images: weighing them more, or showing them more often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """A weight per class with which every class that has images counts the same.

    Args:
        labels: class indices, int64 (N,).
        classes: their number, C.

    Returns:
        float32 (C,), of mean 1 over the images; 0 for a class without any.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return np.where(counts, len(labels) / (present * np.maximum(counts, 1)), 0).astype(np.float32)


@dataclass(frozen=True)
class Balance:
    """How often images come in an epoch so that all classes come equally often.

    Attributes:
        weights: float32 (N,), the expected number of times for each image.
    """

    weights: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, classes: int) -> Balance:
        """For images of these classes, int64 (N,)."""
        return cls(class_weights(labels, classes)[labels])

    def times(self, random: np.random.Generator) -> np.ndarray:
        """int64 (N,): how often each image comes, drawn for one epoch."""
        whole = np.floor(self.weights)
        once_more = random.random(len(whole)) < self.weights - whole
        return (whole + once_more).astype(np.int64)
