"""Classifies images with a published version in this process, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.serving.errors import UserError
from graftline.serving.signature import INPUT, SIGNATURE

if TYPE_CHECKING:
    import numpy as np


class Predictor:
    """A version's image-bytes signature."""

    def __init__(self, version: Path, *, gpu: bool = False) -> None:
        """Loads the SavedModel in a version's folder.

        Args:
            version: the folder.
            gpu: use a GPU where there is one.

        Raises:
            UserError: it cannot be loaded, or does not take encoded images.
        """
        import tensorflow as tf

        if not gpu:
            # A prediction must not take the GPU away from a training.
            tf.config.set_visible_devices([], "GPU")
        try:
            # The signature is only valid while the model it belongs to is kept.
            self._model = tf.saved_model.load(str(version))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"The SavedModel in {version} cannot be loaded: {str(error).splitlines()[0]} "
                f"See what is wrong with `graftline verify {version.name}`."
            ) from error
        self._signature: Any = self._model.signatures.get(SIGNATURE)
        inputs = self._signature.structured_input_signature[1] if self._signature else {}
        if INPUT not in inputs:
            raise UserError(
                f"The model in {version} has no signature {SIGNATURE} that takes encoded images "
                f"as {INPUT}: it was not trained by Graftline."
            )

    def predict(self, images: Sequence[bytes]) -> list[list[tuple[str, float]] | None]:
        """Classifies a batch of encoded images.

        Returns:
            For each image every class with its probability, the likeliest first; None for an
            image that the model cannot decode.
        """
        import tensorflow as tf

        try:
            classes, scores = self.classify(images)
        except tf.errors.InvalidArgumentError:
            if len(images) == 1:
                return [None]
            return [result for image in images for result in self.predict([image])]
        return [_ranked(classes, row) for row in scores]

    def classify(self, images: Sequence[bytes]) -> tuple[list[str], np.ndarray]:
        """Class names, and the probability of each for every one of a batch of encoded images.

        Args:
            images: at least one.

        Returns:
            C names and float32 (len(images), C).

        Raises:
            tf.errors.InvalidArgumentError: one of them cannot be decoded.
        """
        import tensorflow as tf

        outputs = self._signature(**{INPUT: tf.constant(list(images))})
        return [name.decode() for name in outputs["classes"][0].numpy()], outputs["scores"].numpy()


def _ranked(classes: Sequence[str], scores: Sequence[float]) -> list[tuple[str, float]]:
    pairs = [(name, float(score)) for name, score in zip(classes, scores, strict=True)]
    return sorted(pairs, key=lambda pair: -pair[1])
