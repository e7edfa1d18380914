"""Classifies images with a published version in this process, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftline.serving.errors import UserError
from graftline.serving.signature import INPUT, SIGNATURE


class Predictor:
    """A version's image-bytes signature, on the CPU."""

    def __init__(self, version: Path) -> None:
        """Loads the SavedModel in a version's folder.

        Raises:
            UserError: it cannot be loaded, or does not take encoded images.
        """
        import tensorflow as tf

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
            outputs = self._signature(**{INPUT: tf.constant(list(images))})
        except tf.errors.InvalidArgumentError:
            if len(images) == 1:
                return [None]
            return [result for image in images for result in self.predict([image])]
        rows = zip(outputs["classes"].numpy(), outputs["scores"].numpy(), strict=True)
        return [_ranked(classes, scores) for classes, scores in rows]


def _ranked(classes: Sequence[bytes], scores: Sequence[float]) -> list[tuple[str, float]]:
    pairs = [(name.decode(), float(score)) for name, score in zip(classes, scores, strict=True)]
    return sorted(pairs, key=lambda pair: -pair[1])
