"""Which images are kept, which group each belongs to, and on which side of the split it lies.

A group, the near-duplicates of one image, lies on one side for ever: the side follows from a hash
of the group's name, or from the source where that gives it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from graftline.components.ingest import likeness
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.fingerprints import Fingerprints, Known
from graftline.components.ingest.worksheet import Row, Worksheet
from graftline.components.progress import report

DUPLICATE = "duplicate"
CONFLICT = "conflicting-labels"
BRIDGE = "bridges-splits"
LEAK = "duplicate-across-splits"
_REPORT_EVERY = 1000


def split_of(group: str, config: DropConfig) -> str:
    """The split of a group: a pure function of its name and the configured shares."""
    digest = hashlib.sha256(group.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < config.test_share:
        return "test"
    if place < config.test_share + config.eval_share:
        return "eval"
    return "train"


def assign_splits(
    sheet: Worksheet,
    history: Fingerprints,
    kept: Fingerprints,
    config: DropConfig,
    counts: Callable[[Known], bool],
) -> None:
    """Finds duplicates and gives every image that is kept its group and split.

    Args:
        sheet: the drop; its rows are updated.
        history: images of all versions of all spans.
        kept: empty; receives the images of this drop that are kept.
        config: shares, and whether to look for near-duplicates.
        counts: whether an image of the history is trained on. One that is not, for its version was
            replaced, is no reason to set another aside; but it still tells where its like belongs.
    """
    sheet.set_aside_conflicts(CONFLICT)
    total = sheet.usable()
    for number, (row, finding) in enumerate(sheet.by_priority(), start=1):
        same = history.same(finding.id)
        twin = next(
            (image for image in (*same, *kept.same(finding.id)) if _present(image, counts)), None
        )
        if twin:
            sheet.set_aside(row.seq, *_refuse_twin(row, twin))
            continue
        near: list[Known] = []
        if config.near_duplicates and likeness.has_structure(finding.thumbnail):
            near = history.near(finding.hash, finding.thumbnail)
            near += kept.near(finding.hash, finding.thumbnail)
        present = [image for image in near if _present(image, counts)]
        refusal = _refuse_side(row, present)
        if refusal:
            sheet.set_aside(row.seq, *refusal)
            continue
        # What it resembles now binds; then what it was itself; then what it resembled once.
        like = next(iter([*present, *reversed(same), *near]), None)
        group = like.group if like else finding.id
        split = row.given_split or (like.split if like else split_of(group, config))
        sheet.assign(row.seq, group, split)
        image = Known(id=finding.id, group=group, split=split, label=row.label or "", file=row.name)
        kept.add(image, finding.hash, finding.thumbnail)
        if number % _REPORT_EVERY == 0:
            report(f"looking for duplicates  {number}/{total}")


def _present(image: Known, counts: Callable[[Known], bool]) -> bool:
    return image.span == 0 or counts(image)


def _refuse_twin(row: Row, twin: Known) -> tuple[str, str]:
    """Reason and detail for an image whose very bytes are there already."""
    if twin.label != row.label:
        return CONFLICT, f"the same image stands under {twin.label} as {twin.where}"
    if row.given_split and row.given_split != twin.split:
        return (
            LEAK,
            f"given to {row.given_split}, the same image is in {twin.split} as {twin.where}",
        )
    return DUPLICATE, f"the same image as {twin.where}"


def _refuse_side(row: Row, near: list[Known]) -> tuple[str, str] | None:
    """Reason and detail for an image that would lie on one side with its like on another."""
    sides = {image.split: image for image in reversed(near)}
    if len(sides) > 1:
        named = " and ".join(f"{image.where} in {split}" for split, image in sorted(sides.items()))
        return BRIDGE, f"it resembles {named}"
    if row.given_split and near and row.given_split != near[0].split:
        return LEAK, f"given to {row.given_split}, it resembles {near[0].where} in {near[0].split}"
    return None
