"""What TensorFlow Model Analysis computes on the test split.

It computes, the model gate decides: there are no thresholds here, because TFMA would apply them to
every slice, knows neither classes with too few images nor differences that are only chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow_model_analysis as tfma
import tf_keras

from graftline.components.model_gate.config import ModelGateConfig
from graftline.components.model_gate.evaluator import BASELINE, CANDIDATE, SIGNATURE
from graftline.components.verdict import OVERALL
from graftline.serving.errors import UserError

LABEL = "label"


def eval_config(config: ModelGateConfig, classes: Sequence[str]) -> tfma.EvalConfig:
    """The configuration of the Evaluator.

    Args:
        config: the section of the model gate.
        classes: class names of the schema.

    Raises:
        UserError: a bound of the user's names a class that the schema does not have.
    """
    for bound in config.bounds:
        if bound.slice not in (OVERALL, *classes):
            raise UserError(
                f"model_gate.bounds asks for the {bound.metric} of {bound.slice!r}, which is no "
                f"class of the schema. Its classes are: {', '.join(classes)}."
            )
    models = [
        tfma.ModelSpec(
            name=name,
            signature_name=SIGNATURE,
            label_key=LABEL,
            model_type=tfma.TF_GENERIC,
            is_baseline=name == BASELINE,
        )
        for name in (CANDIDATE, BASELINE)
    ]
    metrics = [
        tfma.metrics.ExampleCount(),
        tf_keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        tf_keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy"),
    ]
    return tfma.EvalConfig(
        model_specs=models,
        slicing_specs=[tfma.SlicingSpec(), tfma.SlicingSpec(feature_keys=[LABEL])],
        metrics_specs=tfma.metrics.specs_from_metrics(metrics, model_names=[CANDIDATE, BASELINE]),
    )
