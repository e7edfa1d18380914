"""What a user can set about images and training: the sections `image` and `trainer`.

Read by the preprocessing, the trainer and `graftline init`; nothing heavy is imported here, so that
a configuration is checked before TensorFlow is loaded.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from graftline.components.trainer import backbones
from graftline.serving.errors import UserError


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes the square that the backbone sees."""

    size: Annotated[
        int,
        Meta(ge=32, le=1024, description="Width and height in pixels of what the backbone sees."),
    ] = 224
    fit: Annotated[
        Literal["stretch", "crop", "pad"],
        Meta(
            description="How an image that is not square is fitted: stretch it, crop its longer "
            "side about the centre, or pad its shorter side with black."
        ),
    ] = "stretch"


class HeadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The layers between the backbone and the classes."""

    hidden: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=8192)], ...],
        Meta(description="Units of each hidden layer; empty: straight from features to classes."),
    ] = ()
    dropout: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Share of features dropped at random in training."),
    ] = 0.2


Schedule = Annotated[
    Literal["constant", "cosine"],
    Meta(description="How the rate goes on: constant, or cosine, falling to 0 by the last epoch."),
]


class FrozenPhase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First phase: the backbone is fixed, only the head trains, on features computed once."""

    epochs: Annotated[int, Meta(ge=0, description="Most epochs; 0 leaves the phase out.")] = 30
    rate: Annotated[float, Meta(gt=0.0, le=1e38, description="Learning rate of Adam.")] = 1e-3
    schedule: Schedule = "constant"


class FineTunePhase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Second phase: the upper part of the backbone trains together with the head."""

    epochs: Annotated[int, Meta(ge=0, description="Most epochs; 0 leaves the phase out.")] = 5
    rate: Annotated[float, Meta(gt=0.0, le=1e38, description="Learning rate of Adam.")] = 3e-4
    schedule: Schedule = "cosine"
    fraction: Annotated[
        float,
        Meta(
            gt=0.0, le=1.0, description="Share of the backbone's blocks that train, from the top."
        ),
    ] = 0.5


class TrainerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model is made."""

    backbone: Annotated[
        str, Meta(description="Pretrained network: " + ", ".join(backbones.BACKBONES) + ".")
    ] = "efficientnet_lite0"
    weights: Annotated[
        str,
        Meta(
            description="bundled (comes with the installation, efficientnet_lite0 only), imagenet "
            "(downloaded once by Keras), none (starts at random), or a path to an .h5 file."
        ),
    ] = "bundled"
    alpha: Annotated[
        float, Meta(gt=0.0, description="Width of a MobileNet against the standard one.")
    ] = 1.0
    batch_size: Annotated[int, Meta(ge=1, description="Images per training step.")] = 32
    head: HeadConfig = HeadConfig()
    frozen: FrozenPhase = FrozenPhase()
    fine_tune: FineTunePhase = FineTunePhase()
    patience: Annotated[
        int,
        Meta(ge=1, description="Epochs without a better loss on the eval split that end a phase."),
    ] = 4
    strategy: Annotated[
        Literal["auto", "one_device", "mirrored"],
        Meta(
            description="Where training runs: one_device, mirrored over the GPUs of this machine, "
            "or auto (mirrored where there is more than one GPU)."
        ),
    ] = "auto"
    seed: Annotated[int, Meta(ge=0, description="Seed of everything random in training.")] = 0

    def __post_init__(self) -> None:
        """Refuses combinations that cannot train.

        Raises:
            ValueError: with what does not go together, and what does.
        """
        try:
            backbone = backbones.find(self.backbone)
        except UserError as error:
            raise ValueError(str(error)) from error
        named = self.weights in backbones.WEIGHTS
        if named and self.weights not in backbone.weights:
            raise ValueError(
                f"weights {self.weights} do not exist for {self.backbone}; it offers "
                f"{', '.join(backbone.weights)}, or a path to an .h5 file"
            )
        if not named and PurePath(self.weights).suffix not in (".h5", ".hdf5"):
            raise ValueError(
                f"weights {self.weights!r} is neither one of {', '.join(backbones.WEIGHTS)} nor "
                "a path that ends in .h5"
            )
        if self.alpha != 1.0 and not backbone.has_alpha:
            raise ValueError(f"alpha has no meaning for {self.backbone}; leave it at 1.0")
        if self.frozen.epochs == 0 and self.fine_tune.epochs == 0:
            raise ValueError("frozen.epochs and fine_tune.epochs are both 0: nothing would train")
        whole = self.fine_tune.epochs > 0 and self.fine_tune.fraction == 1.0
        if self.weights == "none" and (self.frozen.epochs > 0 or not whole):
            raise ValueError(
                "a backbone with weights none starts at random, so that nothing of it may stay "
                "frozen: set frozen.epochs to 0 and fine_tune.fraction to 1.0"
            )
