"""The networks that images can be described with, by name: plain data, without TensorFlow.

So a configuration is checked and `graftline backbones` answers at once; the network itself is made
by `build.load`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftline.components.trainer.backbones import applications, efficientnet_lite, small_networks
from graftline.components.trainer.backbones.scaling import PLAIN, Scaling
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    import tf_keras

# Where weights can come from; anything else is the path of a file.
WEIGHTS = ("bundled", "imagenet", "hub", "none")


@dataclass(frozen=True)
class Backbone:
    """One entry of the registry.

    Attributes:
        name: what the configuration calls it.
        make: from image size and alpha to a Keras model with random weights, from images
            (B, size, size, 3) to feature maps (B, h, w, F) or features (B, F).
        scaling: what its input looks like.
        block: regular expression of its layers' names; group 1 is the block that one belongs to.
            None where it cannot be cut into blocks.
        weights: which named weights it offers.
        size: the image size that it is made for, in pixels.
        smallest: the least image size that it takes.
        parameters: their number without the classes, at alpha 1.
        alphas: the widths that its pretrained weights come in.
        application: which network of Keras it is, whose ImageNet weights can be downloaded.
        variant: which EfficientNet-Lite it is, whose weights are bundled.
    """

    name: str
    make: Callable[[int, float], tf_keras.Model]
    scaling: Scaling
    block: str | None
    weights: tuple[str, ...] = ("none",)
    size: int = 224
    smallest: int = 1
    parameters: int = 0
    alphas: tuple[float, ...] = (1.0,)
    application: applications.Application | None = None
    variant: efficientnet_lite.Variant | None = None


def _lite(variant: efficientnet_lite.Variant, size: int, parameters: int) -> Backbone:
    return Backbone(
        name=variant.name,
        make=lambda size, alpha: efficientnet_lite.build(variant, size),
        scaling=Scaling(mean=(127.0, 127.0, 127.0), deviation=(128.0, 128.0, 128.0)),
        block=r"(stem|block\d+|head)_",
        weights=("bundled", "none"),
        size=size,
        smallest=32,
        parameters=parameters,
        variant=variant,
    )


def _application(application: applications.Application) -> Backbone:
    return Backbone(
        name=application.name,
        make=application.make,
        scaling=application.scaling,
        block=application.block,
        weights=("imagenet", "none"),
        size=application.size,
        smallest=application.smallest,
        parameters=application.parameters,
        alphas=application.alphas,
        application=application,
    )


def _small(
    name: str, make: Callable[[int], tf_keras.Model], smallest: int, parameters: int
) -> Backbone:
    return Backbone(
        name=name,
        make=lambda size, alpha: make(size),
        scaling=PLAIN,
        block=r"(block\d+)_",
        weights=("none",),
        size=96,
        smallest=smallest,
        parameters=parameters,
    )


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        _lite(efficientnet_lite.VARIANTS[0], 224, 3_413_024),
        _lite(efficientnet_lite.VARIANTS[1], 240, 4_189_344),
        _lite(efficientnet_lite.VARIANTS[2], 260, 4_869_168),
        *map(_application, applications.APPLICATIONS),
        _small("lenet5", small_networks.lenet5, 20, 942_436),
        _small("residual", small_networks.residual, 16, 273_392),
        _small("residual_cbam", small_networks.residual_cbam, 16, 278_882),
    )
}

# TensorFlow Hub's image feature vectors take pixels of 0 to 1.
_HUB = re.compile(r"^https?://\S+$")
_VERSIONED = re.compile(r"/\d+(?:[?#].*)?$")


def find(name: str) -> Backbone:
    """The registry's entry of that name, or one for a TensorFlow Hub handle.

    Raises:
        UserError: there is none, which names the nearest ones; or the handle has no version.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if _HUB.match(name):
        return _hub(name)
    near = difflib.get_close_matches(name, BACKBONES, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(
        f"There is no backbone called {name!r}.{hint} Known: {', '.join(BACKBONES)}; or the https "
        "address of a feature vector on TensorFlow Hub."
    )


def _hub(handle: str) -> Backbone:
    if not _VERSIONED.search(handle):
        raise UserError(
            f"The TensorFlow Hub handle {handle} names no version, so that tomorrow it may be "
            f"another network: end it in one, e.g. {handle.rstrip('/')}/1."
        )

    def make(size: int, alpha: float) -> tf_keras.Model:
        raise ValueError("it has no weights but those of its address: set weights to hub")

    return Backbone(
        name=handle,
        make=make,
        scaling=Scaling(mean=(0.0, 0.0, 0.0), deviation=(255.0, 255.0, 255.0)),
        block=None,
        weights=("hub",),
        size=224,
        smallest=1,
        parameters=0,
    )
