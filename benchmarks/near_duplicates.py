"""How many planted copies a drop finds, and how many images it takes for copies that are none.

    python benchmarks/near_duplicates.py FOLDER... [--digits] [--copies 1000] [--json FILE]

Each folder's images are dealt to three drops. Of 1,000 of them (all, where there are fewer) a copy,
recompressed (JPEG, quality 30 to 95), resized (by 0.3 to 2, at least 24 pixels) or both, goes into
the same or a later drop. A copy counts as found when it has come into the group of its original, or
was set aside for resembling it. A false pair is two originals in one group; its share is told of
the pairs found (planted copies and false pairs) and of all pairs of originals.

With --thresholds it tells instead, without drops, what other thresholds would find: of the copies
and their originals, and of all pairs of originals.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import itertools
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as parquet
from PIL import Image

from graftline.components.ingest import likeness
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.drop import drop
from graftline.components.ingest.examine import Finding, PixelBudget, examine
from graftline.components.ingest.spans import IMAGES, Span
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.serving.image_check import Limits

_DROPS = 3
_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
_KERNELS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def digits() -> Iterator[bytes]:
    """The 1797 handwritten digits of scikit-learn, 8x8 pixels, enlarged to 64x64."""
    from sklearn.datasets import load_digits

    for scan in load_digits().images:
        image = Image.fromarray((255 - scan * (255 / 16)).astype("uint8"))
        yield _encode(image.resize((64, 64), Image.Resampling.BICUBIC), "PNG")


def files(folder: Path) -> Iterator[bytes]:
    """The images below a folder, each content once."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            content = path.read_bytes()
            if content not in seen:
                seen.add(content)
                yield content


def copy(original: bytes, chance: random.Random) -> bytes:
    """A recompressed or resized copy, or one that is both."""
    image = Image.open(io.BytesIO(original))
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    kind = chance.choice(("recompressed", "resized", "both"))
    if kind != "recompressed":
        least = min(max(0.3, 24 / min(image.size)), 1.0)
        scale = chance.uniform(least, 2.0)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, chance.choice(_KERNELS))
    if kind == "resized" and chance.random() < 0.5:
        return _encode(image, "PNG")
    return _encode(image, "JPEG", quality=chance.randint(30, 95))


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def measure(originals: Sequence[bytes], copies: int, folder: Path, seed: int) -> dict[str, Any]:
    """Plants copies, takes three drops in and counts.

    Args:
        originals: encoded images, all different.
        copies: how many copies.
        folder: empty, for drops and spans.
        seed: of which images are copied and how.
    """
    chance = random.Random(seed)
    originals_ids = [
        _put(original, folder / f"drop-{number % _DROPS}", f"original-{number:05d}")
        for number, original in enumerate(originals)
    ]
    of = {id_: number for number, id_ in enumerate(originals_ids)}
    planted = {}
    for number in chance.sample(range(len(originals)), min(copies, len(originals))):
        later = chance.randrange(number % _DROPS, _DROPS)
        content = copy(originals[number], chance)
        id_ = _put(content, folder / f"drop-{later}", f"zcopy-{number:05d}")
        if id_ not in of:
            planted[id_] = of[id_] = number
    spans = [
        drop(
            folder / f"drop-{number}",
            folder / "spans",
            folder / "quarantine",
            DropConfig(max_quarantined=1.0),
            ["one"],
            beam_options=beam_options(BeamConfig(), "drop"),
        )
        for number in range(_DROPS)
    ]
    groups = _groups(spans)
    details = _set_aside(folder / "quarantine")
    found = sum(
        # The originals come first: by their names in one drop, and in earlier drops.
        groups[id_] == groups.get(originals_ids[number]) != id_
        if id_ in groups
        else f"original-{number:05d}" in details[f"zcopy-{number:05d}"]
        for id_, number in planted.items()
    )
    members = collections.defaultdict(set)
    for id_, group in groups.items():
        members[group].add(of[id_])
    false_pairs = [
        pair for group in members.values() for pair in itertools.combinations(sorted(group), 2)
    ]
    return {
        "originals": len(originals),
        "planted": len(planted),
        "found": found,
        "recall": found / len(planted),
        "false_pairs": len(false_pairs),
        "false_share_of_pairs_found": len(false_pairs) / max(1, found + len(false_pairs)),
        "false_share_of_all_pairs": len(false_pairs) / math.comb(len(originals), 2),
        "false_pairs_e.g.": false_pairs[:10],
        "set_aside": dict(
            sum((collections.Counter(s.summary.quarantined) for s in spans), collections.Counter())
        ),
    }


def sweep(originals: Sequence[bytes], copies: int, seed: int) -> dict[str, Any]:
    """How far copies are from their originals and originals from one another, by thresholds.

    Args:
        originals: encoded images, all different.
        copies: how many copies.
        seed: of which images are copied and how.
    """
    chance = random.Random(seed)
    looks = [_look(original) for original in originals]
    numbers = chance.sample(range(len(originals)), min(copies, len(originals)))
    pairs = [(looks[number], _look(copy(originals[number], chance))) for number in numbers]
    near = [_distance(one, other) for one, other in pairs]
    met = [bool({*likeness.keys(one.hash)} & {*likeness.keys(other.hash)}) for one, other in pairs]
    holders = collections.defaultdict(list)
    apart = []
    for number, found in enumerate(looks):
        candidates = sorted({n for key in likeness.keys(found.hash) for n in holders[key]})
        if candidates:
            thumbnails = [looks[n].thumbnail for n in candidates]
            apart += likeness.differences(found.thumbnail, thumbnails).tolist()
        for key in likeness.keys(found.hash):
            holders[key].append(number)
    return {
        "candidates": sum(met) / len(met),
        "by_threshold": {
            threshold: {
                "recall": sum(m and d <= threshold for m, d in zip(met, near, strict=True))
                / len(near),
                "false_pairs": sum(d <= threshold for d in apart),
            }
            for threshold in _THRESHOLDS
        },
    }


def _look(content: bytes) -> Finding:
    limits = msgspec.convert(DropConfig(), Limits, from_attributes=True)
    return examine(content, limits, PixelBudget(limits.max_pixels))


def _distance(one: Finding, other: Finding) -> float:
    return float(likeness.differences(one.thumbnail, [other.thumbnail])[0])


def _put(content: bytes, folder: Path, name: str) -> str:
    path = folder / "one" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _groups(spans: Sequence[Span]) -> dict[str, str]:
    return {
        row["id"]: row["group"]
        for span in spans
        for row in parquet.read_table(span.path / IMAGES, columns=["id", "group"]).to_pylist()
    }


def _set_aside(quarantine: Path) -> dict[str, str]:
    rows = [
        json.loads(line)
        for path in quarantine.rglob("quarantine.jsonl")
        for line in path.read_text("utf-8").splitlines()
    ]
    return {Path(row["file"]).name: row["detail"] for row in rows}


def main() -> None:
    """Measures every set and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--digits", action="store_true", help="scikit-learn's digits as well")
    parser.add_argument("--copies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thresholds", action="store_true", help="try other thresholds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    sets = {str(folder): list(files(folder)) for folder in options.folders}
    if options.digits:
        sets["digits"] = list(digits())
    if not sets:
        sys.exit("Name folders of images, or --digits.")
    results: dict[str, dict[str, Any]] = {}
    if options.thresholds:
        print(f"{'':<20}{'candidates':>11}" + "".join(f"{t:>14}" for t in _THRESHOLDS))
        for name, originals in sets.items():
            results[name] = sweep(originals, options.copies, options.seed)
            cells = results[name]["by_threshold"].values()
            told = "".join(f"{c['recall']:>8.1%}{c['false_pairs']:>6}" for c in cells)
            print(f"{_short(name):<20}{results[name]['candidates']:>11.1%}{told}", flush=True)
    else:
        print(
            f"{'set':<20}{'originals':>10}{'planted':>9}{'found':>8}{'false pairs':>13}"
            f"{'of pairs found':>16}{'of all pairs':>14}"
        )
    for name, originals in sets.items() if not options.thresholds else ():
        with tempfile.TemporaryDirectory() as folder:
            result = measure(originals, options.copies, Path(folder), options.seed)
        results[name] = result
        print(
            f"{_short(name):<20}{result['originals']:>10}{result['planted']:>9}"
            f"{result['recall']:>8.1%}{result['false_pairs']:>13}"
            f"{result['false_share_of_pairs_found']:>16.2%}"
            f"{result['false_share_of_all_pairs']:>14.5%}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _short(name: str) -> str:
    """The folder's name; that of the one above where it is only called `images`."""
    path = Path(name)
    return path.parent.name if path.name == "images" else path.name


if __name__ == "__main__":
    main()
