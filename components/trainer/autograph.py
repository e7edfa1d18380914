"""Keeps AutoGraph out of libraries."""

from __future__ import annotations

from tensorflow.python.autograph.core import config

_GRAPH_CODE = ("tf_keras", "tensorflow_transform")


def leave_libraries_unconverted() -> None:
    """Tells AutoGraph not to convert Keras 2 and TensorFlow Transform, graph code as they are.

    TensorFlow 2.16 lacks the rule for `tf_keras`, later versions have it. Without it the first step
    of a training takes half a minute, in which all of the library is converted; what Transform has
    saved would take another second wherever it is called.
    """
    for name in _GRAPH_CODE:
        if not any(rule.matches(name) for rule in config.CONVERSION_RULES):
            config.CONVERSION_RULES = (config.DoNotConvert(name), *config.CONVERSION_RULES)
