"""A picture of which classes a model takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# With more classes numbers and names would run into each other.
_READABLE = 40


def draw(matrix: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Writes a confusion matrix as a PNG: shade is the share of the true class, text the images.

    Args:
        matrix: images per true class (rows) and named class (columns), int64 (C, C).
        classes: class names, (C,).
        path: where to write.
    """
    size = len(classes)
    inches = 3 + 0.5 * min(size, _READABLE)
    figure = Figure(figsize=(inches + 1, inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_xlabel("named by the model")
    axes.set_ylabel("true class")
    axes.set_title(f"{matrix.sum()} test images")
    if size <= _READABLE:
        # A class may be called `$5`, which is no formula.
        axes.set_xticks(range(size), classes, rotation=90, parse_math=False)
        axes.set_yticks(range(size), classes, parse_math=False)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = shares[row, column] > 0.5
            axes.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
