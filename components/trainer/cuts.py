"""Where each phase cuts the backbone: what trains, and what below it is computed only once.

What lies below the blocks that train gives the same activations for an image in every epoch. They
are computed in one pass for all phases for which they will still hold, and kept on disk. A phase
reads the images where nothing lies below, where activations would take too much of the disk, and
where they are made faster than read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras

from graftline.components.trainer.backbones import build
from graftline.components.trainer.config import TrainerConfig
from graftline.components.trainer.network import join


@dataclass(frozen=True)
class Cut:
    """How one phase sees the backbone.

    Attributes:
        blocks: how many blocks, from the top, train.
        network: what the phase trains, to logits.
        lower: what does not train; None where all does.
        stored: the tensor whose values the network takes; None: it takes images.
    """

    blocks: int
    network: tf_keras.Model
    lower: tf_keras.Model | None
    stored: Any | None

    @property
    def name(self) -> str:
        """What the stored values are called."""
        return _below(self.blocks)


def _below(blocks: int) -> str:
    return f"below_{blocks}_blocks"


def cut_for_phases(
    backbone: tf_keras.Model,
    head: tf_keras.Model,
    config: TrainerConfig,
    most_bytes: float,
    is_worth_storing: Callable[[tf_keras.Model], bool],
) -> list[Cut]:
    """One cut per phase.

    Args:
        backbone: from images to features (B, F).
        head: from features to logits.
        config: the section `trainer`.
        most_bytes: how much the activations of one image may take.
        is_worth_storing: whether to keep those that a network makes.

    Raises:
        UserError: the backbone has not so many blocks.
    """
    pretrained = config.weights != "none"
    cuts = []
    for phase in config.phases:
        blocks = build.upper_blocks(backbone, config.backbone, phase.fraction, phase.blocks)
        if not blocks:
            cuts.append(Cut(0, head, backbone, backbone.output))
            continue
        lower, upper = build.split(backbone, config.backbone, blocks)
        if (
            lower is None
            or int(np.prod(lower.output_shape[1:])) * 4 > most_bytes
            or not is_worth_storing(lower)
        ):
            cuts.append(Cut(blocks, join(backbone, head, pretrained), lower, None))
        else:
            cuts.append(Cut(blocks, join(upper, head, pretrained), lower, lower.output))
    return cuts


def still_valid(cuts: Sequence[Cut], trained: int) -> dict[str, Any]:
    """What to compute in one pass, by name: for each of the next phases, if it will still hold.

    Args:
        cuts: of the phase that comes now and of those after it.
        trained: how many blocks the phases before have trained.
    """
    tensors = {}
    for one in cuts:
        # A block below that has trained meanwhile gives other activations than now.
        if one.stored is not None and trained <= one.blocks:
            tensors[one.name] = one.stored
        trained = max(trained, one.blocks)
    return tensors


def boundaries(backbone: tf_keras.Model, name: str, fewest: int) -> dict[str, Any]:
    """Tensors at which a cut may have been, by what it calls them, the uppermost first.

    Args:
        backbone: from images to features.
        name: its name in the registry.
        fewest: blocks above the uppermost of them.
    """
    return {
        _below(blocks): tensor
        for blocks, tensor in enumerate(build.block_inputs(backbone, name), start=1)
        if blocks >= fewest
    }
