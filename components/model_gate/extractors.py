"""The steps of the Evaluator's Beam pipeline: TFMA's own, and those that write the predictions.

Every image is read and predicted once, for the metrics and for the rows; memory is bounded by a
batch, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
from apache_beam.io.filesystem import CompressionTypes

from graftline.components.model_gate.evaluator import BASELINE, CANDIDATE, destination
from graftline.components.model_gate.predictions import SUFFIX, Answer, Row, encode

# Beam would let batches grow to 1000 images, which is gigabytes once they are decoded.
BATCH = 64

LABEL = "label"

_PREDICTED = tfma.extractors.predictions_extractor.PREDICTIONS_EXTRACTOR_STAGE_NAME
_SLICED = tfma.extractors.SLICE_KEY_EXTRACTOR_STAGE_NAME


def extractors(
    eval_shared_model: Any, eval_config: tfma.EvalConfig, tensor_adapter_config: Any
) -> list[tfma.extractors.Extractor]:
    """TFMA's extractors with small batches in front and the rows written in between.

    The metrics behind them count images of the candidate's classes, and ask a baseline with other
    classes for those; TFMA takes labels and scores of one length only.

    Args:
        eval_shared_model: one model or, with a baseline, several.
        eval_config: configuration of the evaluation.
        tensor_adapter_config: how records become tensors.
    """
    usual = tfma.default_extractors(
        eval_shared_model=eval_shared_model,
        eval_config=eval_config,
        tensor_adapter_config=tensor_adapter_config,
    )
    stages = [extractor.stage_name for extractor in usual]
    # TFMA's evaluators take what the slicer puts out, whatever comes behind it.
    predicted, sliced = stages.index(_PREDICTED) + 1, stages.index(_SLICED)
    batches = tfma.extractors.Extractor("SmallBatches", _SmallBatches())
    rows = tfma.extractors.Extractor("WritePredictions", _WritePredictions(destination.get()))
    known = tfma.extractors.Extractor("KnownLabels", _KnownLabels())
    return [batches, *usual[:predicted], rows, *usual[predicted:sliced], known, *usual[sliced:]]


class _SmallBatches(beam.PTransform):
    """Cuts batches of records into smaller ones, without copying."""

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        return extracts | beam.FlatMap(_cut)


class _WritePredictions(beam.PTransform):
    """Writes a row per image; what goes on is without the image's bytes, which nothing reads."""

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        write = beam.io.WriteToText(
            self._path, file_name_suffix=SUFFIX, compression_type=CompressionTypes.GZIP
        )
        _ = extracts | "Rows" >> beam.FlatMap(_rows) | "Write" >> write
        return extracts | "Reduce" >> beam.Map(_reduce)


class _KnownLabels(beam.PTransform):
    """Keeps the images whose label is one of the candidate's classes."""

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        return extracts | beam.Filter(_known)


def _cut(extracts: tfma.types.Extracts) -> Iterator[tfma.types.Extracts]:
    records = extracts[tfma.ARROW_RECORD_BATCH_KEY]
    for start in range(0, records.num_rows, BATCH):
        yield {**extracts, tfma.ARROW_RECORD_BATCH_KEY: records.slice(start, BATCH)}


def _reduce(extracts: tfma.types.Extracts) -> tfma.types.Extracts:
    kept = {key: value for key, value in extracts.items() if key != tfma.INPUT_KEY}
    features = {key: value for key, value in kept[tfma.FEATURES_KEY].items() if key != "image"}
    predictions = kept[tfma.PREDICTIONS_KEY]
    if BASELINE in predictions:
        classes = predictions[CANDIDATE]["classes"]
        aligned = {"classes": classes, "scores": _scores_of(classes[0], predictions[BASELINE])}
        predictions = {**predictions, BASELINE: aligned}
    return {**kept, tfma.FEATURES_KEY: features, tfma.PREDICTIONS_KEY: predictions}


def _scores_of(classes: np.ndarray, prediction: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores in the order of `classes`, 0 where the model does not know one."""
    index = {name: i for i, name in enumerate(prediction["classes"][0])}
    with_zero = np.pad(prediction["scores"], ((0, 0), (0, 1)))
    return with_zero[:, [index.get(name, -1) for name in classes]]


def _known(extracts: tfma.types.Extracts) -> bool:
    predictions = extracts[tfma.PREDICTIONS_KEY]
    classes = predictions.get(CANDIDATE, predictions)["classes"]
    return bool(np.isin(extracts[tfma.FEATURES_KEY][LABEL], classes).all())


def _rows(extracts: tfma.types.Extracts) -> Iterator[str]:
    predictions = extracts[tfma.PREDICTIONS_KEY]
    if CANDIDATE not in predictions:
        predictions = {CANDIDATE: predictions}
    for i, record in enumerate(extracts[tfma.INPUT_KEY]):
        features = tf.train.Example.FromString(record).features.feature
        label = features[LABEL].bytes_list.value[0].decode()
        answers = {name: _answer(prediction, i, label) for name, prediction in predictions.items()}
        yield encode(
            Row(
                id=features["id"].bytes_list.value[0].decode(),
                label=label,
                candidate=answers[CANDIDATE],
                baseline=answers.get(BASELINE),
            )
        )


def _answer(prediction: Mapping[str, np.ndarray], i: int, label: str) -> Answer:
    classes = [name.decode() for name in prediction["classes"][i]]
    scores = prediction["scores"][i]
    top = int(np.argmax(scores))
    return Answer(
        predicted=classes[top],
        score=float(scores[top]),
        label_score=float(scores[classes.index(label)]) if label in classes else None,
    )
