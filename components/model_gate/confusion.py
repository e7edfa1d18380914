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


def count(label: NDArray[np.int32], named: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Number of images per true class (rows) and named class (columns), int64 (size, size).

    Args:
        label: true class of each image, (N,); classes from `size` up are left out.
        named: class that the model named, (N,); negative where it is none of the classes.
        size: number of classes.
    """
    counted = (named >= 0) & (named < size) & (label < size)
    pairs = label[counted].astype(np.int64) * size + named[counted]
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def draw(
    label: NDArray[np.int32], named: NDArray[np.int32], classes: Sequence[str], path: Path
) -> None:
    """Writes a confusion matrix as a PNG: shade is the share of the true class, text the images.

    Of more classes than can be read it shows those with most mistakes.

    Args:
        label: true class of each image, (N,).
        named: class that the model named, (N,).
        classes: class names, (C,).
        path: where to write.
    """
    title = f"{len(label)} test images"
    if len(classes) > _READABLE:
        wrong = label[label != named]
        mistakes = np.bincount(wrong, minlength=len(classes))
        shown = np.sort(np.argsort(-mistakes, kind="stable")[:_READABLE])
        place = np.full(len(classes) + 1, _READABLE)  # the last one for a class of -1
        place[shown] = np.arange(_READABLE)
        label, named = place[label], place[named]
        title += f", the {_READABLE} of {len(classes)} classes with most mistakes"
        classes = [classes[index] for index in shown]
    size = len(classes)
    matrix = count(label, named, size)
    inches = 3 + 0.5 * size
    figure = Figure(figsize=(inches + 1, inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    images = np.bincount(label, minlength=size)[:size]
    shares = matrix / np.maximum(images, 1)[:, np.newaxis]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_xlabel("named by the model")
    axes.set_ylabel("true class")
    axes.set_title(title)
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
