"""The trainer on small images and a small network."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import pytest
import tensorflow_transform.beam as tft_beam
import tf_keras
from apache_beam.options.pipeline_options import PipelineOptions
from tensorflow_transform.tf_metadata.dataset_metadata import DatasetMetadata

from graftline.components.trainer.backbones import registry
from graftline.components.trainer.backbones.scaling import PLAIN
from graftline.components.trainer.record import TrainingRecord
from graftline.components.trainer.run import run_fn
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.preprocessing import preprocessing_fn
from graftline.schemas import curated
from small_training import CLASSES, SIZE, Train, labelled, make, write_span


@pytest.fixture(scope="package", autouse=True)
def small() -> Iterator[str]:
    """Registers that network for the time of these tests; its weights are in a file."""
    registry.BACKBONES["small"] = registry.Backbone("small", make, PLAIN, r"(first|second)_")
    yield "small"
    del registry.BACKBONES["small"]


@pytest.fixture(scope="package")
def transform_graph(tmp_path_factory: pytest.TempPathFactory, small: str) -> str:
    folder = tmp_path_factory.mktemp("transform_graph")
    config = {"image": {"size": SIZE}, "backbone": small, "classes": CLASSES}
    schema = DatasetMetadata(curated.build(CLASSES))
    options = PipelineOptions([*beam_options(BeamConfig(), "drop")])
    with beam.Pipeline(options=options) as pipeline, tft_beam.Context(str(folder / "temporary")):
        function = functools.partial(preprocessing_fn, custom_config=config)
        analyzed = (pipeline | beam.Create([]), schema) | tft_beam.AnalyzeDataset(function)
        analyzed | tft_beam.WriteTransformFn(str(folder))
    return str(folder)


@pytest.fixture(scope="package")
def spans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("spans")
    return {
        "train": [
            write_span(folder / "1/train", labelled(30, 0)),
            write_span(folder / "2/train", labelled(18, 100)),
        ],
        "eval": [write_span(folder / "1/eval", labelled(12, 200))],
    }


@pytest.fixture(scope="package")
def train(tmp_path_factory, transform_graph, spans, small) -> Train:
    """Runs the trainer with some settings and returns its record; `folder` has the rest."""
    weights = tmp_path_factory.mktemp("weights") / "small.h5"
    tf_keras.utils.set_random_seed(5)
    make(SIZE, 1.0).save_weights(str(weights))

    def run(
        folder: Path,
        patterns: dict[str, list[str]] | None = None,
        features: Path | None = None,
        code: str = "",
        weights_digest: str = "",
        start_from: Path | None = None,
        classes: Sequence[str] = CLASSES,
        **settings: object,
    ) -> TrainingRecord:
        trainer = {"backbone": small, "weights": str(weights), "batch_size": 8, **settings}
        files = {**spans, **(patterns or {})}
        run_fn(
            SimpleNamespace(
                train_files=files["train"],
                eval_files=files["eval"],
                transform_output=transform_graph,
                schema_path=None,
                serving_model_dir=str(folder / "Format-Serving"),
                model_run_dir=str(folder / "run"),
                custom_config={
                    "trainer": json.loads(json.dumps(trainer)),
                    "image": {"size": SIZE},
                    "classes": list(classes),
                    "weights_cache": "/nowhere",
                    "features": {"folder": str(features or folder / "features"), "code": code},
                    "start_from": str(start_from or ""),
                    "checkpoints": str((features or folder).parent / "checkpoints"),
                    "cluster": str(folder / "cluster"),
                    "last_good": str(folder / "last_good"),
                    "code": code,
                    "weights_digest": weights_digest,
                },
            )
        )
        return TrainingRecord.read(str(folder / "run"))

    return run
