"""A backbone with its weights, and cutting it between two blocks."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tf_keras

from graftline.components.trainer.backbones import efficientnet_lite, hub
from graftline.components.trainer.backbones.registry import WEIGHTS, Backbone, find
from graftline.components.trainer.backbones.weights import find_or_fetch, without_other_layers
from graftline.serving.errors import UserError


def load(
    name: str,
    weights: str,
    alpha: float,
    size: int,
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> tf_keras.Model:
    """Makes a backbone and gives it its weights.

    Args:
        name: a name of the registry, or a TensorFlow Hub handle.
        weights: `bundled`, `imagenet`, `hub`, `none`, or a path to an .h5 file.
        alpha: width, where the backbone has one to choose.
        size: width and height of its input in pixels.
        cache: folder of downloaded weights.
        progress: told how far a download is.

    Returns:
        A Keras model from images (B, size, size, 3) float32, scaled as the registry says, to
        feature maps (B, h, w, F) or features (B, F), float32.

    Raises:
        UserError: the weights are missing, damaged, or of another architecture; names the file.
    """
    backbone = find(name)
    if weights == "bundled":
        assert backbone.variant is not None
        model = backbone.make(size, alpha)
        efficientnet_lite.set_bundled_weights(model, backbone.variant)
        return model
    if weights == "imagenet":
        return _with_imagenet_weights(backbone, alpha, size, cache, progress, [])
    if weights == "hub":
        return hub.build(name, size, cache)
    if weights not in WEIGHTS:
        return _with_weights_of(backbone, Path(weights).expanduser(), alpha, size)
    return backbone.make(size, alpha)


def fetch(name: str, alpha: float, size: int, cache: Path, progress: Callable[[str], None]) -> Path:
    """Makes sure that the ImageNet weights of a backbone are on this machine and fit it.

    Returns:
        the file.

    Raises:
        UserError: they cannot be had.
    """
    found: list[Path] = []
    _with_imagenet_weights(find(name), alpha, size, cache, progress, found)
    return found[0]


def _with_imagenet_weights(
    backbone: Backbone,
    alpha: float,
    size: int,
    cache: Path,
    progress: Callable[[str], None],
    found: list[Path],
) -> tf_keras.Model:
    def source(file: str, address: str, expected: str | None) -> str:
        found.append(find_or_fetch(cache, progress, file, address, expected))
        return str(found[0])

    assert backbone.application is not None
    with _explained(backbone, found):
        return backbone.application.make(size, alpha, source)


def _with_weights_of(backbone: Backbone, path: Path, alpha: float, size: int) -> tf_keras.Model:
    if not path.is_file():
        raise UserError(f"There is no weight file {path} (trainer.weights).")
    application = backbone.application
    with _explained(backbone, [path]), tempfile.TemporaryDirectory() as scratch:
        model = backbone.make(size, alpha)
        file = without_other_layers(path, [layer.name for layer in model.layers], Path(scratch))
        # Some networks are put together otherwise where their weights are Keras's.
        if application and alpha in backbone.alphas:
            return application.make(size, alpha, lambda *_: str(file))
        model.load_weights(str(file))
        return model


@contextlib.contextmanager
def _explained(backbone: Backbone, found: Sequence[Path]) -> Iterator[None]:
    """Says which file it was that could not be read or does not fit."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The weight file {found[0]} is not a whole HDF5 file: {error}. Copy it again."
        ) from error
    except (ValueError, KeyError) as error:
        if not found:
            raise UserError(f"{backbone.name} cannot be made: {error}") from error
        raise UserError(
            f"The weight file {found[0]} does not fit {backbone.name}: {error} It must hold the "
            "weights of the same network, of the same alpha."
        ) from error


def block_starts(model: tf_keras.Model, backbone: Backbone) -> list[str]:
    """Names of the layers at which the blocks of a backbone begin, from the image upwards.

    The input of each is one tensor through which everything above it is reached.
    """
    if backbone.block is None:
        return []
    pattern = re.compile(backbone.block)
    starts: dict[str, str] = {}
    for layer in model.layers:
        match = pattern.match(layer.name)
        if match:
            starts.setdefault(match[1], layer.name)
    return list(starts.values())


def without_top(model: tf_keras.Model, name: str, blocks: int) -> tf_keras.Model:
    """A backbone without its uppermost blocks; the layers are shared with it, not copied.

    Raises:
        UserError: it has not so many.
    """
    if not blocks:
        return model
    starts = block_starts(model, find(name))
    if blocks >= len(starts):
        raise UserError(
            f"{name} has {len(starts)} blocks: head.skip_blocks {blocks} leaves nothing of it."
        )
    return tf_keras.Model(model.input, model.get_layer(starts[-blocks]).input)


def upper_blocks(model: tf_keras.Model, name: str, fraction: float, blocks: int) -> int:
    """How many of a backbone's blocks a phase trains.

    Args:
        model: what `load` returned.
        name: its name in the registry.
        fraction: share of its blocks; more than nothing is at least one block.
        blocks: the same as a number, where fraction is 0.

    Raises:
        UserError: it has not so many.
    """
    count = len(block_starts(model, find(name))) or 1
    if blocks > count:
        raise UserError(f"{name} has {count} blocks, of which {blocks} cannot train.")
    return blocks or (max(1, round(fraction * count)) if fraction else 0)


def block_inputs(model: tf_keras.Model, name: str) -> list[Any]:
    """The tensors between the blocks of a backbone, at which `split` can cut it, from the top."""
    starts = block_starts(model, find(name))
    return [model.get_layer(start).input for start in reversed(starts[1:])]


def split(
    model: tf_keras.Model, name: str, blocks: int
) -> tuple[tf_keras.Model | None, tf_keras.Model]:
    """Cuts a backbone between two blocks; the layers are shared with it, not copied.

    Args:
        model: what `load` returned.
        name: its name in the registry.
        blocks: how many of its blocks, from the top, belong to the upper part; at least one.

    Returns:
        The lower part, from images to activations (None where the upper part is all of it), and
        the upper part, from activations to features.
    """
    inputs = block_inputs(model, name)
    if blocks > len(inputs):
        return None, model
    tensor = inputs[blocks - 1]
    return tf_keras.Model(model.input, tensor), tf_keras.Model(tensor, model.output)
