"""What the models said about each test image: rows of JSON, and arrays of them.

The rows are for people and tools (which images does the candidate get wrong?), the arrays for the
gate: a few bytes an image, whatever the number of classes.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

PREFIX = "predictions"
SUFFIX = ".jsonl.gz"


class Answer(msgspec.Struct, frozen=True):
    """What one model said about one image.

    Attributes:
        predicted: the class with the highest score.
        score: its probability.
        label_score: the probability of the true class, None where the model does not know it.
    """

    predicted: str
    score: float
    label_score: float | None


class Row(msgspec.Struct, frozen=True):
    """One test image: its id, its true class, what the candidate and the baseline said."""

    id: str
    label: str
    candidate: Answer
    baseline: Answer | None = None


def encode(row: Row) -> str:
    """A row as one line of JSON."""
    return msgspec.json.encode(row).decode()


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows in the folder of an evaluation, in the order of its files."""
    decoder = msgspec.json.Decoder(Row)
    for path in sorted(folder.glob(f"{PREFIX}*{SUFFIX}")):
        with gzip.open(path) as lines:
            yield from map(decoder.decode, lines)


class Predictions(msgspec.Struct, frozen=True):
    """The test images as arrays; classes are indices, -1 where a class is none of `classes`.

    Attributes:
        classes: class names.
        label: true class, int32 (N,).
        candidate: class that the candidate named, int32 (N,).
        baseline: class that the version in service named, int32 (N,), -1 for one that is none of
            `classes`; None where there was no baseline or it gave no answers.
        known: whether the version in service knows the true class, bool (N,).
        unknown: images per label that is none of `classes`; they are in no array.
    """

    classes: tuple[str, ...]
    label: NDArray[np.int32]
    candidate: NDArray[np.int32]
    baseline: NDArray[np.int32] | None
    known: NDArray[np.bool_]
    unknown: dict[str, int]


def read_predictions(folder: Path, classes: Sequence[str]) -> Predictions:
    """Reads the rows of an evaluation.

    Args:
        folder: of the ModelEvaluation.
        classes: class names in the order of the candidate's outputs.
    """
    index = {name: i for i, name in enumerate(classes)}
    columns = np.fromiter(_columns(folder, index), dtype=_COLUMNS)
    unknown: dict[str, int] = {}
    if (columns["label"] < 0).any():
        for row in read_rows(folder):
            if row.label not in index:
                unknown[row.label] = unknown.get(row.label, 0) + 1
    columns = columns[columns["label"] >= 0]
    answered = len(columns) > 0 and bool(columns["answered"].all())
    return Predictions(
        classes=tuple(classes),
        label=columns["label"],
        candidate=columns["candidate"],
        baseline=columns["baseline"] if answered else None,
        known=columns["known"],
        unknown=unknown,
    )


_COLUMNS = np.dtype(
    [
        ("label", np.int32),
        ("candidate", np.int32),
        ("baseline", np.int32),
        ("answered", np.bool_),
        ("known", np.bool_),
    ]
)


def _columns(folder: Path, index: dict[str, int]) -> Iterator[tuple]:
    for row in read_rows(folder):
        said = row.baseline
        yield (
            index.get(row.label, -1),
            index.get(row.candidate.predicted, -1),
            -1 if said is None else index.get(said.predicted, -1),
            said is not None,
            said is not None and said.label_score is not None,
        )
