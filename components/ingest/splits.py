"""Which images are kept, which group each belongs to, and on which side of the split it lies.

A group, the near-duplicates of one image, lies on one side for ever: the side follows from a hash
of the group's name, or from the source where that gives it.
"""

from __future__ import annotations

import hashlib

from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.examine import Finding
from graftline.components.ingest.fingerprints import Fingerprints, Known
from graftline.components.ingest.worksheet import Row, Worksheet
from graftline.components.progress import report

DUPLICATE = "duplicate"
CONFLICT = "conflicting-labels"
BRIDGE = "bridges-splits"
LEAK = "duplicate-across-splits"
_REPORT_EVERY = 2000


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
    sheet: Worksheet, known: Fingerprints, config: DropConfig, span: int
) -> None:
    """Finds duplicates and gives every image that is kept its group and split.

    Args:
        sheet: the drop; its rows are updated.
        known: images of all spans; the kept images of this drop are added.
        config: shares, and whether to look for near-duplicates.
        span: number of this span; what its earlier versions hold does not count.
    """
    sheet.index()
    for _, seqs, labels in sheet.conflicts():
        sheet.set_aside(seqs, CONFLICT, f"the same image is labelled {' and '.join(labels)}")
    total = sheet.count("reason=''")
    for number, (row, finding) in enumerate(sheet.usable(), start=1):
        _assign(row, finding, sheet, known, config, span)
        if number % _REPORT_EVERY == 0:
            report(f"looking for duplicates  {number}/{total}")


def _assign(
    row: Row,
    finding: Finding,
    sheet: Worksheet,
    known: Fingerprints,
    config: DropConfig,
    span: int,
) -> None:
    label = row.label or ""
    same = known.find(finding.id, without_span=span)
    if same:
        where = f"span {same.span}" if same.span else "this drop"
        if same.label == label:
            sheet.set_aside([row.seq], DUPLICATE, f"the same image is in {where}")
        else:
            sheet.set_aside([row.seq], CONFLICT, f"it is labelled {same.label} in {where}")
        return
    aspect = finding.width / finding.height
    near = (
        known.near(finding.hash, finding.thumbnail, aspect, without_span=span)
        if config.near_duplicates
        else []
    )
    sides = {other.split for other in near}
    if len(sides) > 1:
        sheet.set_aside(
            [row.seq], BRIDGE, f"it resembles images of the splits {' and '.join(sorted(sides))}"
        )
        return
    if near and row.given_split and row.given_split not in sides:
        where = f"span {near[0].span}" if near[0].span else "this drop"
        detail = f"it is given to {row.given_split} and resembles one of {near[0].split} in {where}"
        sheet.set_aside([row.seq], LEAK, detail)
        return
    group = near[0].group if near else finding.id
    split = near[0].split if near else row.given_split or split_of(group, config)
    sheet.assign(row.seq, group, split)
    entry = Known(id=finding.id, group=group, split=split, label=label, span=0)
    known.add(entry, finding.hash, finding.thumbnail, aspect)
