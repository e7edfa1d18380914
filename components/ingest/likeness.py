"""When two images are near-duplicates: one is a recompressed or resized copy of the other.

A 64-bit perceptual hash finds candidates, a thumbnail decides. Candidates share most of their
hash: the bits are dealt to six blocks, and two images are compared when two blocks are the same,
which is so for any two hashes that differ in at most four bits (multi-index hashing: Norouzi,
Punjani and Fleet, CVPR 2012). A copy differs from its original by the traces of compression and
resampling, in every place by little of the image's contrast; another scan of the same form, a
defect on the same board, differs strongly in some place. What was measured: docs/drops.md.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Side of the thumbnail, in pixels.
THUMBNAIL = 24

_HASH_BITS = 64
_BLOCKS = 6
# Largest difference in any place, as a share of the contrast.
MOST_DIFFERENCE = 0.2
# With less contrast, in levels of luma, an image is a blank: all blanks look alike.
_LEAST_CONTRAST = 4.0

# Bits are dealt out in turn, so that every block has some of the coarse and of the fine structure.
_MASKS = tuple(
    sum(1 << bit for bit in range(_HASH_BITS) if bit % _BLOCKS in pair)
    for pair in itertools.combinations(range(_BLOCKS), 2)
)


@functools.lru_cache(1)  # asked thrice of each image, one image after the other
def keys(hash_: int) -> tuple[bytes, ...]:
    """What two images have in common, one at least, when one may be a copy of the other.

    Args:
        hash_: 64-bit perceptual hash.

    Returns:
        fifteen keys of nine bytes: the bits of two blocks, and which blocks they are.
    """
    return tuple(
        (hash_ & mask).to_bytes(8, "big") + bytes([place]) for place, mask in enumerate(_MASKS)
    )


@functools.lru_cache(1)
def has_structure(thumbnail: bytes) -> bool:
    """Whether an image has enough contrast to be told from others by its thumbnail."""
    return float(_contrast(_pixels([thumbnail]))[0]) >= _LEAST_CONTRAST


def alike(thumbnail: bytes, others: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Which images are near-duplicates of one, by their thumbnails.

    Args:
        thumbnail: luma, THUMBNAIL by THUMBNAIL bytes, of an image with structure.
        others: N of the same.

    Returns:
        bool (N,).
    """
    return differences(thumbnail, others) <= MOST_DIFFERENCE


def differences(thumbnail: bytes, others: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """How much an image differs from others where it differs most, as a share of the contrast.

    Args:
        thumbnail: as in `alike`.
        others: N of the same.

    Returns:
        float32 (N,); infinite for those without structure.
    """
    one, many = _pixels([thumbnail]), _pixels(others)
    contrast = np.minimum(_contrast(one), _contrast(many))
    difference = np.abs(many - one).max(axis=1)
    blank = contrast < _LEAST_CONTRAST
    return np.where(blank, np.inf, difference / np.maximum(contrast, _LEAST_CONTRAST))


def _pixels(thumbnails: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """float32 (N, THUMBNAIL * THUMBNAIL)."""
    flat = np.frombuffer(b"".join(thumbnails), np.uint8)
    return flat.reshape(len(thumbnails), -1).astype(np.float32)


def _contrast(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 (N,): in levels of luma; the range counts too, for a small mark on a plain ground."""
    return pixels.std(axis=1) + 0.2 * (pixels.max(axis=1) - pixels.min(axis=1))
