"""Feature vectors of TensorFlow Hub, by their address.

TensorFlow Hub's library downloads them, once, into the folder that the environment variable
TFHUB_CACHE_DIR names, by default one beside the other weights.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.serving.errors import UserError

if TYPE_CHECKING:
    import tf_keras


def build(handle: str, size: int, cache: Path) -> tf_keras.Model:
    """The network behind a handle, with its weights.

    Args:
        handle: address of a feature vector, with its version.
        size: width and height of its input in pixels.
        cache: folder of downloaded weights, where TFHUB_CACHE_DIR names no other.

    Returns:
        A Keras model from images (B, size, size, 3) of 0 to 1 to features (B, F).

    Raises:
        UserError: it cannot be downloaded, is torn, or is no feature vector of images of this size.
    """
    import tensorflow as tf
    import tensorflow_hub
    import tf_keras

    image = tf_keras.Input((size, size, 3), name="image")
    kept = Path(os.environ.setdefault("TFHUB_CACHE_DIR", str(cache / "tfhub")))
    folder = kept / hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()
    try:
        # Its graph was made in float32 and takes nothing else.
        layer = tensorflow_hub.KerasLayer(handle, trainable=True, name="hub", dtype="float32")
        features = layer(image)
    except tf.errors.ResourceExhaustedError:
        raise
    except (
        tf.errors.OpError,
        IndexError,
        OSError,
    ) as error:  # variables are read with the first two
        if folder.is_dir():
            raise UserError(
                f"The network {handle} in {folder} cannot be read ({error}): files are torn or "
                "missing. Delete that folder, to have it fetched again."
            ) from error
        raise UserError(
            f"The network {handle} is not on this machine and could not be downloaded ({error}). "
            f"Fetch {handle}?tf-hub-format=compressed where there is a network and unpack it into "
            f"{folder}."
        ) from error
    except (ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"The network {handle} does not take images of {size}x{size} pixels: {first}. Set "
            "image.size to what its page on TensorFlow Hub says."
        ) from error
    if len(features.shape) != 2:
        raise UserError(
            f"The network {handle} gives {features.shape} for an image instead of a vector: choose "
            "one that its page calls a feature vector."
        )
    return tf_keras.Model(image, features, name="hub")
