"""Recompressed and resized copies: found, kept on one side of the split; others left alone."""

import io
from pathlib import Path

import numpy as np
import pytest
from drops import images, pattern, quarantine_list, set_aside, take_in
from PIL import Image

from graftline.components.ingest import likeness
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.examine import Finding, PixelBudget, examine
from graftline.serving.image_check import Limits

LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20, min_side=8, max_aspect=20)


def look(image: Image.Image, kind: str = "PNG", **options: int) -> Finding:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return examine(stream.getvalue(), LIMITS, PixelBudget(1 << 20))


def are_near(one: Finding, other: Finding) -> bool:
    is_candidate = set(likeness.keys(one.hash)) & set(likeness.keys(other.hash))
    return bool(is_candidate and likeness.alike(one.thumbnail, [other.thumbnail])[0])


ORIGINAL = pattern(seed=5, side=96)
COPIES = {
    "quality 30": (ORIGINAL, "JPEG", {"quality": 30}),
    "half the size": (ORIGINAL.resize((48, 48), Image.Resampling.LANCZOS), "PNG", {}),
    "twice the size": (ORIGINAL.resize((192, 192), Image.Resampling.BICUBIC), "PNG", {}),
    "smaller and compressed": (ORIGINAL.resize((60, 60)), "JPEG", {"quality": 60}),
    "in colour": (ORIGINAL.convert("RGB"), "PNG", {}),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_a_near_duplicate(name):
    image, kind, options = COPIES[name]
    assert are_near(look(ORIGINAL), look(image, kind, **options))


def test_a_small_mark_on_the_same_ground_makes_another_image():
    pixels = np.array(ORIGINAL)
    pixels[40:50, 40:50] = 255 - pixels[40:50, 40:50]
    assert not are_near(look(ORIGINAL), look(Image.fromarray(pixels)))


def test_a_board_with_a_defect_is_hardly_ever_taken_for_a_copy_of_one_without(shared_data):
    folder = shared_data / "pcb_defects_mit" / "pairs_full"
    sides = [sorted((folder / side).iterdir()) for side in ("ok", "defect")]
    boards = [
        [examine(path.read_bytes(), LIMITS, PixelBudget(1 << 20)) for path in s] for s in sides
    ]
    assert sum(are_near(*pair) for pair in zip(*boards, strict=True)) <= len(sides[0]) // 20


def test_mirrored_and_brightened_images_are_others():
    mirrored = ORIGINAL.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert not are_near(look(ORIGINAL), look(mirrored))
    assert not are_near(look(ORIGINAL), look(ORIGINAL.point(lambda level: level // 2)))


def test_blank_images_are_nobodys_near_duplicates():
    blank = look(Image.new("L", (96, 96), 250))
    assert not likeness.has_structure(blank.thumbnail)
    assert not likeness.alike(blank.thumbnail, [blank.thumbnail])[0]


def test_hashes_that_differ_in_four_bits_always_meet_in_a_key():
    random = np.random.default_rng(0)
    for _ in range(200):
        hash_ = int(random.integers(0, 2**63))
        other = hash_
        for bit in random.choice(64, 4, replace=False):
            other ^= 1 << int(bit)
        assert set(likeness.keys(hash_)) & set(likeness.keys(other))


def series(folder: Path, **variants: tuple[range, dict[str, int]]) -> Path:
    """Writes images of these seeds, one variant after the other, saved with other options."""
    folder.mkdir(parents=True)
    for name, (seeds, options) in variants.items():
        for seed in seeds:
            kind = "JPEG" if options else "PNG"
            pattern(seed, 48).save(folder / f"{seed}-{name}", kind, **options)
    return folder


def test_near_duplicates_stay_on_one_side_of_the_split_over_all_spans(tmp_path):
    half = DropConfig(eval_share=0.25, test_share=0.25)
    shares = {"eval_share": half.eval_share, "test_share": half.test_share}
    originals, some, others = range(12), range(8), range(100, 106)
    series(tmp_path / "first" / "rose", original=(originals, {}), copy=(some, {"quality": 80}))
    first = take_in(tmp_path / "first", tmp_path, **shares)
    series(tmp_path / "second" / "rose", again=(originals, {"quality": 60}), new=(others, {}))
    second = take_in(tmp_path / "second", tmp_path, **shares)

    groups: dict[str, set[str]] = {}
    sides: dict[str, set[str]] = {}
    for span in (first, second):
        for file, row in images(span).items():
            seed = Path(file).name.split("-")[0]
            groups.setdefault(seed, set()).add(row["group"])
            sides.setdefault(seed, set()).add(row["split"])
    assert len(groups) == len(originals) + len(others)
    assert all(len(found) == 1 for found in (*groups.values(), *sides.values()))
    assert len(set.union(*groups.values())) == len(groups)
    assert {side for found in sides.values() for side in found} == {"train", "eval", "test"}
    assert first.summary.near_duplicates == len(some)
    assert second.summary.near_duplicates == len(originals)


def test_an_image_between_two_that_lie_apart_is_set_aside(tmp_path):
    base, light = np.array(pattern(1, 48), int), np.zeros((48, 48), int)
    step = round(0.15 * float(base.std() + 0.2 * np.ptp(base)))
    light[8:40, 8:40] = step
    source = tmp_path / "source"
    for split, pixels in (("train", base - light), ("test", base + light)):
        (source / split / "rose").mkdir(parents=True)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(source / split / "rose" / "outer.png")
    take_in(source, tmp_path)
    (tmp_path / "more" / "rose").mkdir(parents=True)
    Image.fromarray(base.astype(np.uint8)).save(tmp_path / "more" / "rose" / "between.png")
    for seed in range(50, 54):
        pattern(seed, 48).save(tmp_path / "more" / "rose" / f"{seed}.png")

    take_in(tmp_path / "more", tmp_path)

    assert set_aside(tmp_path / "quarantine") == {"rose/between.png": "bridges-splits"}
    [row] = quarantine_list(tmp_path / "quarantine")
    assert "test/rose/outer.png of span 1 in test and" in row["detail"]
    assert "train/rose/outer.png of span 1 in train" in row["detail"]


def test_looking_for_near_duplicates_can_be_switched_off(tmp_path):
    source = series(tmp_path / "s" / "rose", a=(range(4), {}), b=(range(4), {"quality": 80})).parent
    span = take_in(source, tmp_path, near_duplicates=False)
    assert span.summary.near_duplicates == 0
    assert len({row["group"] for row in images(span).values()}) == 8
