"""TFX's Evaluator, which here also writes what the models said about every single image.

The model gate compares candidate and baseline image by image; TFMA keeps sums only.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from absl import flags
from tensorflow.core.protobuf import saved_model_pb2
from tfx import types
from tfx.components.evaluator import component, executor
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import path_utils

from graftline.components.model_gate.predictions import PREFIX

CANDIDATE = "candidate"
BASELINE = "baseline"
SIGNATURE = "serving_examples"

# TFX finds the extractors by name and imports their module afresh: this is how they are told where
# to write.
destination: ContextVar[str] = ContextVar("destination of the predictions")

_EXTRACTORS = "graftline.components.model_gate.extractors.extractors"


class Executor(executor.Executor):
    """Evaluates candidate and baseline with TFMA and writes their predictions beside it."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """As TFX's Evaluator; `evaluation` also holds the predictions, one row per image.

        A baseline that cannot be asked in the way of the candidate is left out; the model gate
        then finds no answers of it.

        Args:
            input_dict: as for TFX's Evaluator.
            output_dict: likewise.
            exec_properties: likewise.
        """
        evaluation = artifact_utils.get_single_uri(
            output_dict[standard_component_specs.EVALUATION_KEY]
        )
        baseline = input_dict.get(standard_component_specs.BASELINE_MODEL_KEY) or []
        if baseline and not _can_be_asked(baseline[0]):
            logging.warning("The baseline %s has no signature %s.", baseline[0].uri, SIGNATURE)
            input_dict = {**input_dict, standard_component_specs.BASELINE_MODEL_KEY: []}
        # Batches of records are else counted, up to 1000, however large the images are.
        flags.FLAGS.set_default("tfxio_use_byte_size_batching", True)
        token = destination.set(str(Path(evaluation) / PREFIX))
        try:
            super().Do(
                input_dict, output_dict, {**exec_properties, "custom_extractors": _EXTRACTORS}
            )
        finally:
            destination.reset(token)


class Evaluator(component.Evaluator):
    """TFX's Evaluator with per-image predictions in its `evaluation`."""

    EXECUTOR_SPEC = BeamExecutorSpec(Executor)


def _can_be_asked(model: types.Artifact) -> bool:
    saved = Path(path_utils.serving_model_path(model.uri)) / "saved_model.pb"
    graphs = saved_model_pb2.SavedModel.FromString(saved.read_bytes()).meta_graphs
    return any(SIGNATURE in graph.signature_def for graph in graphs)
