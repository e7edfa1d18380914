"""The pretrained networks, by name: what each wants to see, where its blocks begin, its weights.

The registry is plain data, so that a configuration is checked and a list is shown without
TensorFlow; the network itself is made by `load`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.serving.errors import UserError

if TYPE_CHECKING:
    import tf_keras

WEIGHTS = ("bundled", "imagenet", "none")


@dataclass(frozen=True)
class Scaling:
    """How pixels of 0 to 255 become the backbone's input: (pixel - mean) / deviation.

    Attributes:
        mean: per channel, in the order in which the backbone takes them.
        deviation: per channel, likewise.
        bgr: whether the backbone takes blue first.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    bgr: bool = False


@dataclass(frozen=True)
class Backbone:
    """One entry of the registry.

    Attributes:
        name: what the configuration calls it.
        make: from image size and alpha to a Keras model with random weights or, where the third
            argument is `imagenet`, Keras's own; images (B, size, size, 3) to features (B, F).
        scaling: what its input looks like.
        block: regular expression of its layers' names; group 1 is the block that one belongs to.
        weights: which named weights it offers.
        size: the image size that its weights were made with, in pixels.
        has_alpha: whether it comes in several widths.
    """

    name: str
    make: Callable[[int, float, str | None], tf_keras.Model]
    scaling: Scaling
    block: str
    weights: tuple[str, ...] = ("imagenet", "none")
    size: int = 224
    has_alpha: bool = False


def _efficientnet_lite0(size: int, alpha: float, weights: str | None) -> tf_keras.Model:
    from graftline.components.trainer import efficientnet_lite

    return efficientnet_lite.build(size)


def _application(name: str, **fixed: Any) -> Callable[[int, float, str | None], tf_keras.Model]:
    def make(size: int, alpha: float, weights: str | None) -> tf_keras.Model:
        import tf_keras

        # Only the MobileNets have a width to choose.
        width = {"alpha": alpha} if name.startswith("MobileNet") else {}
        return getattr(tf_keras.applications, name)(
            input_shape=(size, size, 3),
            include_top=False,
            pooling="avg",
            weights=weights,
            **width,
            **fixed,
        )

    return make


_ONE = Scaling(mean=(127.5, 127.5, 127.5), deviation=(127.5, 127.5, 127.5))

BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            name="efficientnet_lite0",
            make=_efficientnet_lite0,
            scaling=Scaling(mean=(127.0, 127.0, 127.0), deviation=(128.0, 128.0, 128.0)),
            block=r"(stem|block\d+|head)_",
            weights=("bundled", "none"),
        ),
        Backbone(
            name="mobilenet_v2",
            make=_application("MobileNetV2"),
            scaling=_ONE,
            block=r"(Conv1|expanded_conv|block_\d+|Conv_1)(?:_|$)",
            has_alpha=True,
        ),
        Backbone(
            name="mobilenet_v3_small",
            make=_application("MobileNetV3Small", include_preprocessing=False),
            scaling=_ONE,
            block=r"(Conv|expanded_conv(?:_\d+)?|Conv_1)(?:/|$)",
            has_alpha=True,
        ),
        Backbone(
            name="efficientnet_v2_b0",
            make=_application("EfficientNetV2B0", include_preprocessing=False),
            scaling=Scaling(
                mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
                deviation=(0.229 * 255, 0.224 * 255, 0.225 * 255),
            ),
            block=r"(stem|block\d+[a-z]|top)_",
        ),
        Backbone(
            name="resnet50",
            make=_application("ResNet50"),
            scaling=Scaling(mean=(103.939, 116.779, 123.68), deviation=(1.0, 1.0, 1.0), bgr=True),
            block=r"(conv1|conv\d_block\d+)_",
        ),
    )
}


def find(name: str) -> Backbone:
    """The registry's entry of that name.

    Raises:
        UserError: there is none; names the nearest ones.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    near = difflib.get_close_matches(name, BACKBONES, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"There is no backbone called {name!r}.{hint} Known: {', '.join(BACKBONES)}.")


def load(name: str, weights: str, alpha: float, size: int) -> tf_keras.Model:
    """Makes a backbone and gives it its weights.

    Args:
        name: a name of the registry.
        weights: `bundled`, `imagenet`, `none`, or a path to an .h5 file.
        alpha: width, where the backbone has one to choose.
        size: width and height of its input in pixels.

    Returns:
        A Keras model from images (B, size, size, 3) float32, scaled as the registry says, to
        pooled features (B, F) float32.

    Raises:
        UserError: the weights are missing, damaged, or of another architecture; names the file.
    """
    backbone = find(name)
    if weights == "imagenet":
        return _with_downloaded_weights(backbone, alpha, size)
    model = backbone.make(size, alpha, None)
    if weights == "bundled":
        from graftline.components.trainer import efficientnet_lite

        efficientnet_lite.set_bundled_weights(model)
    elif weights != "none":
        _load_file(model, Path(weights).expanduser(), name)
    return model


def _with_downloaded_weights(backbone: Backbone, alpha: float, size: int) -> tf_keras.Model:
    try:
        return backbone.make(size, alpha, "imagenet")
    # Keras raises a bare Exception when a download fails; what a torn file in its cache raises
    # depends on where it is torn.
    except Exception as error:
        address = re.search(r"https?://\S+\.h5", str(error))
        cache = Path("~/.keras/models").expanduser()
        if address is None:
            raise UserError(
                f"The ImageNet weights of {backbone.name} could not be read from {cache}: {error} "
                "Delete the file there that belongs to it, or replace it by a whole one."
            ) from error
        file = address[0].rsplit("/", 1)[1]
        raise UserError(
            f"The ImageNet weights of {backbone.name} are not on this machine and could not be "
            f"downloaded ({error}). Fetch {address[0]} where there is a network and put it at "
            f"{cache / file}, or use backbone efficientnet_lite0 with weights bundled, which "
            "needs no download."
        ) from error


def _load_file(model: tf_keras.Model, path: Path, name: str) -> None:
    if not path.is_file():
        raise UserError(f"There is no weight file {path} (trainer.weights).")
    try:
        model.load_weights(str(path))
    except OSError as error:
        raise UserError(
            f"The weight file {path} is not a whole HDF5 file: {error}. Copy it again."
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(
            f"The weight file {path} does not fit {name}: {error} It must hold the weights of the "
            "same network, of the same alpha, without its top."
        ) from error


def block_starts(model: tf_keras.Model, name: str) -> list[str]:
    """Names of the layers at which the blocks of a backbone begin, from the image upwards.

    The input of each is one tensor through which everything above it is reached.
    """
    pattern = re.compile(find(name).block)
    starts: dict[str, str] = {}
    for layer in model.layers:
        match = pattern.match(layer.name)
        if match:
            starts.setdefault(match[1], layer.name)
    return list(starts.values())


def split(
    model: tf_keras.Model, name: str, fraction: float
) -> tuple[tf_keras.Model | None, tf_keras.Model]:
    """Cuts a backbone between two blocks; the layers are shared with it, not copied.

    Args:
        model: what `load` returned.
        name: its name in the registry.
        fraction: share of its blocks that belongs to the upper part; at least one block does.

    Returns:
        The lower part, from images to activations (None where the upper part is all of it), and
        the upper part, from activations to features.
    """
    import tf_keras

    starts = block_starts(model, name)
    boundary = len(starts) - max(1, round(fraction * len(starts)))
    if boundary == 0:
        return None, model
    tensor = model.get_layer(starts[boundary]).input
    return tf_keras.Model(model.input, tensor), tf_keras.Model(tensor, model.output)
