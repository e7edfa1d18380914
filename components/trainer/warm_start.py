"""Starting from the version in service: its weights, and what it knows of each class by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer.checkpoint import get_weights, set_weights
from graftline.components.trainer.export import LABELS, WEIGHTS

_NUMBERED = re.compile(rf"^{WEIGHTS}/(\d+)/")


def start_from(saved_model: Path, models: Sequence[tf_keras.Model], classes: Sequence[str]) -> bool:
    """Gives a network the weights of a version, where that is the same one.

    A class that the version does not know keeps its random weights.

    Args:
        saved_model: folder of a version that `export` wrote.
        models: backbone and head, whose last layer gives the logits.
        classes: class names in their order.

    Returns:
        Whether it was the same network; else, or where the version is not one that `export` wrote,
        nothing is changed, and a line of progress says so.
    """
    try:
        known = (saved_model / LABELS).read_text(encoding="utf-8").splitlines()
        found, made = _read(saved_model), get_weights(models)
    except (OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        report(f"no weights in the version in service ({reason}): starting from the pretrained")
        return False
    # The last layer has a column and a bias per class.
    shapes = [weight.shape for weight in made[:-2]]
    if len(found) != len(made) or [weight.shape for weight in found[:-2]] != shapes:
        report("the version in service is another network: starting from the pretrained weights")
        return False
    kernel, bias = made[-2:]
    for number, name in enumerate(classes):
        if name in known:
            kernel[:, number] = found[-2][:, known.index(name)]
            bias[number] = found[-1][known.index(name)]
    set_weights(models, [*found[:-2], kernel, bias])
    return True


def _read(saved_model: Path) -> list[np.ndarray]:
    """The weights of a version, in the order in which `export` was given them."""
    reader = tf.train.load_checkpoint(str(saved_model / "variables" / "variables"))
    numbers = {
        int(match[1]): name
        for name in reader.get_variable_to_shape_map()
        if (match := _NUMBERED.match(name))
    }
    return [reader.get_tensor(numbers[number]) for number in sorted(numbers)]
