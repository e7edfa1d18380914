"""What a user can set about images and training: the sections `image` and `trainer`.

Read by the preprocessing, the trainer and `graftline init`; nothing heavy is imported here, so that
a configuration is checked before TensorFlow is loaded.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from graftline.components.trainer.backbones import registry
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

    skip_blocks: Annotated[
        int,
        Meta(
            ge=0,
            description="Leave out so many of the backbone's uppermost blocks, whose features "
            "belong to what it was pretrained for.",
        ),
    ] = 0
    pooling: Annotated[
        Literal["mean", "max"],
        Meta(description="What becomes of the places of a feature map: their mean or maximum."),
    ] = "mean"
    hidden: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=8192)], ...],
        Meta(description="Units of each hidden layer; empty: straight from features to classes."),
    ] = ()
    dropout: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Share of features dropped at random in training."),
    ] = 0.2


class AugmentationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How training images are varied; never those of the eval and test splits."""

    views: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Views of each image that are stored for a phase that trains on stored "
            "features; where nothing is varied there is one.",
        ),
    ] = 4
    flip: Annotated[
        Literal["none", "horizontal", "vertical", "both"],
        Meta(description="Mirror every other image: left and right, up and down, or both."),
    ] = "none"
    rotation: Annotated[
        float, Meta(ge=0.0, le=180.0, description="Turn by up to so many degrees.")
    ] = 0.0
    shift: Annotated[
        float, Meta(ge=0.0, le=0.5, description="Shift by up to this share of width and height.")
    ] = 0.0
    zoom: Annotated[
        float, Meta(ge=0.0, lt=1.0, description="Enlarge or shrink by up to this share.")
    ] = 0.0
    contrast: Annotated[
        float, Meta(ge=0.0, lt=1.0, description="Raise or lower the contrast by up to this share.")
    ] = 0.0
    policy: Annotated[
        Literal["none", "autoaugment", "randaugment"],
        Meta(
            description="Operations of geometry and colour as AutoAugment found them on ImageNet, "
            "or drawn at random (RandAugment)."
        ),
    ] = "none"
    magnitude: Annotated[
        float, Meta(ge=0.0, le=10.0, description="Strength of RandAugment's operations.")
    ] = 5.0
    mixup: Annotated[
        float,
        Meta(
            ge=0.0,
            description="Train on means of two images and of their labels; the larger, the more "
            "equal their shares (0.2 is usual), 0: off.",
        ),
    ] = 0.0
    cutmix: Annotated[
        float,
        Meta(
            ge=0.0,
            description="Train on images with a rectangle of another one (1.0 is usual), 0: off.",
        ),
    ] = 0.0

    @property
    def varies(self) -> bool:
        """Whether an image has more than one view."""
        moves = (self.rotation, self.shift, self.zoom, self.contrast)
        return self.flip != "none" or self.policy != "none" or any(moves)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another."""
        return bool(self.mixup or self.cutmix)


class PhaseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One phase of training: what of the backbone trains with the head, and how."""

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]*$", description="What the phase is called.")]
    epochs: Annotated[int, Meta(ge=1, description="Most epochs.")]
    rate: Annotated[float, Meta(gt=0.0, le=1e38, description="Learning rate of Adam.")]
    schedule: Annotated[
        Literal["constant", "cosine"],
        Meta(
            description="How the rate goes on: constant, or cosine, falling to 0 by the last epoch."
        ),
    ] = "constant"
    warmup: Annotated[
        float, Meta(ge=0.0, description="Epochs in which the rate rises from 0 to its value.")
    ] = 0.0
    fraction: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="Share of the backbone's blocks that train with the head, from the top; "
            "0: the head alone, on features computed once.",
        ),
    ] = 0.0
    blocks: Annotated[
        int, Meta(ge=0, description="The same as a number of blocks, in place of fraction.")
    ] = 0

    def __post_init__(self) -> None:
        """Refuses combinations that contradict each other.

        Raises:
            ValueError: with what does not go together, and what does.
        """
        if self.fraction and self.blocks:
            raise ValueError("fraction and blocks both say what trains; give one of them")
        if self.warmup >= self.epochs:
            raise ValueError(
                f"a warm-up of {self.warmup:g} epochs leaves nothing of a phase of {self.epochs}"
            )


_PHASES = (
    PhaseConfig(name="frozen", epochs=30, rate=1e-3),
    PhaseConfig(name="fine_tune", epochs=6, rate=5e-4, schedule="cosine", fraction=0.5),
)


class TensorBoardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What TensorBoard shows beside curves and resources."""

    histograms: Annotated[
        bool, Meta(description="Weights, gradients and activations after every epoch.")
    ] = False
    embedding: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="So many eval images as points with thumbnails, by their features.",
        ),
    ] = 0


class TrainerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model is made."""

    backbone: Annotated[
        str,
        Meta(
            description="Pretrained network: a name that `graftline backbones` lists, or the https "
            "address of a feature vector on TensorFlow Hub, with its version."
        ),
    ] = "efficientnet_lite0"
    weights: Annotated[
        str,
        Meta(
            description="bundled (comes with a package: the EfficientNet-Lites), imagenet "
            "(downloaded once, into paths.weights), hub (of a TensorFlow Hub address), none "
            "(starts at random), or a path to an .h5 file that Keras has written."
        ),
    ] = "bundled"
    alpha: Annotated[
        float, Meta(gt=0.0, description="Width of a MobileNet against the standard one.")
    ] = 1.0
    batch_size: Annotated[int, Meta(ge=1, description="Images per training step and device.")] = 32
    head: HeadConfig = HeadConfig()
    phases: Annotated[
        tuple[PhaseConfig, ...],
        Meta(min_length=1, description="One after the other, on the same head."),
    ] = _PHASES
    augmentation: AugmentationConfig = AugmentationConfig()
    label_smoothing: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Share of each label that is spread over all classes."),
    ] = 0.1
    weight_decay: Annotated[
        float,
        Meta(
            ge=0.0,
            description="How much of each weight goes in a step, times the rate; biases and "
            "normalisations keep theirs.",
        ),
    ] = 0.0
    imbalance: Annotated[
        Literal["none", "weights", "resample"],
        Meta(
            description="What to do where some classes have far more images than others: weights "
            "(an image counts the more, the fewer its class has) or resample (it comes the more "
            "often)."
        ),
    ] = "none"
    patience: Annotated[
        int,
        Meta(ge=1, description="Epochs without a smaller error on the eval split that end a phase"),
    ] = 4
    warm_start: Annotated[
        bool,
        Meta(
            description="Start from the version in service, where that is the same network, in "
            "place of the pretrained weights."
        ),
    ] = False
    strategy: Annotated[
        Literal["auto", "one_device", "mirrored", "multi_worker", "tpu"],
        Meta(
            description="Where training runs: one_device, mirrored over the GPUs of this machine, "
            "multi_worker over the cluster that the environment variable TF_CONFIG names, tpu "
            "(TPU_NAME), or auto: what is there."
        ),
    ] = "auto"
    workers: Annotated[
        int,
        Meta(ge=1, description="Start so many processes on this machine that train together."),
    ] = 1
    devices: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...] | None,
        Meta(description="Numbers of the GPUs to use, from 0; null: all, []: none."),
    ] = None
    precision: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        Meta(
            description="What the network computes in; weights and the last layer stay float32. "
            "auto: 16 bits where the hardware is faster by it."
        ),
    ] = "auto"
    rate_scaling: Annotated[
        Literal["linear", "sqrt", "none"],
        Meta(
            description="How the rates grow with the number of devices, each of which takes a "
            "batch of its own; with the square root Adam learns as on one device."
        ),
    ] = "sqrt"
    feature_store_gb: Annotated[
        float,
        Meta(
            ge=0.0,
            description="How many gigabytes of what the network made of the images are kept for "
            "the next runs; 0: none.",
        ),
    ] = 20.0
    tensorboard: TensorBoardConfig = TensorBoardConfig()
    seed: Annotated[int, Meta(ge=0, description="Seed of everything random in training.")] = 0

    def __post_init__(self) -> None:
        """Refuses combinations that cannot train.

        Raises:
            ValueError: with what does not go together, and what does.
        """
        try:
            backbone = registry.find(self.backbone)
        except UserError as error:
            raise ValueError(str(error)) from error
        named = self.weights in registry.WEIGHTS
        if named and self.weights not in backbone.weights:
            raise ValueError(
                f"weights {self.weights} do not exist for {self.backbone}; it offers "
                f"{', '.join(backbone.weights)}, or a path to an .h5 file"
            )
        if not named and "hub" in backbone.weights:
            raise ValueError(f"{self.backbone} has the weights of its address: set weights to hub")
        if not named and PurePath(self.weights).suffix not in (".h5", ".hdf5"):
            raise ValueError(
                f"weights {self.weights!r} is neither one of {', '.join(registry.WEIGHTS)} nor "
                "a path that ends in .h5"
            )
        if self.alpha != 1.0 and len(backbone.alphas) == 1:
            raise ValueError(f"alpha has no meaning for {self.backbone}; leave it at 1.0")
        if self.weights == "imagenet" and self.alpha not in backbone.alphas:
            raise ValueError(
                f"there are no ImageNet weights of {self.backbone} with alpha {self.alpha}; choose "
                f"{', '.join(map(str, backbone.alphas))}"
            )
        if self.workers > 1 and self.strategy not in ("auto", "multi_worker"):
            raise ValueError(
                f"{self.workers} workers train together by the strategy multi_worker, and "
                f"strategy is {self.strategy}; leave it at auto"
            )
        if self.devices is not None and len(set(self.devices)) < len(self.devices):
            raise ValueError(f"devices names a GPU twice: {', '.join(map(str, self.devices))}")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"two phases have the same name: {', '.join(names)}")
        if self.weights == "none" and any(phase.fraction < 1.0 for phase in self.phases):
            raise ValueError(
                "a backbone with weights none starts at random, so that nothing of it may stay "
                "frozen: give every phase fraction 1.0"
            )
        if backbone.block is None and any(
            phase.blocks or 0 < phase.fraction < 1 for phase in self.phases
        ):
            raise ValueError(
                f"{self.backbone} cannot be cut between two blocks: a phase trains the head alone "
                "(fraction 0) or all of it (fraction 1.0)"
            )
