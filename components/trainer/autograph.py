"""Keeps AutoGraph out of Keras 2."""

from __future__ import annotations

from tensorflow.python.autograph.core import config


def leave_keras_unconverted() -> None:
    """Tells AutoGraph not to convert `tf_keras`, which is graph code already.

    TensorFlow 2.16 lacks this rule, later versions have it. Without it the first step of a training
    takes half a minute, in which all of the library is converted.
    """
    if not any(rule.matches("tf_keras") for rule in config.CONVERSION_RULES):
        config.CONVERSION_RULES = (config.DoNotConvert("tf_keras"), *config.CONVERSION_RULES)
