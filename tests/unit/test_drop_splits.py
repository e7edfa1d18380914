"""Exact duplicates, conflicting labels and splits: which image is kept, and on which side."""

import shutil
from pathlib import Path

import pytest
from drops import examples, folders, images, manifest, pattern, picture, set_aside, take_in

from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.splits import split_of
from graftline.serving.errors import UserError

SPLITS = ("train", "eval", "test")


def copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def similar(original: Path, target: Path) -> Path:
    """A near-duplicate: other bytes, the same picture."""
    target.parent.mkdir(parents=True, exist_ok=True)
    seed = int(original.stem)
    pattern(seed).save(target, "JPEG", quality=92)
    return target


def test_the_split_of_a_group_follows_from_its_name_in_the_configured_shares():
    config = DropConfig(eval_share=0.2, test_share=0.3)
    found = [split_of(f"group {number}", config) for number in range(5000)]
    assert found == [split_of(f"group {number}", config) for number in range(5000)]
    shares = {split: found.count(split) / len(found) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.5, "eval": 0.2, "test": 0.3}, abs=0.02)


def test_a_share_of_nothing_leaves_a_split_empty():
    config = DropConfig(eval_share=0.0, test_share=0.0)
    assert {split_of(f"group {number}", config) for number in range(1000)} == {"train"}


def test_duplicates_in_a_drop_are_kept_once_and_conflicting_labels_not_at_all(tmp_path):
    source = folders(tmp_path / "source", 4)
    copy(source / "daisy" / "0.png", source / "daisy" / "again.png")
    copy(source / "daisy" / "1.png", source / "rose" / "daisy.png")

    span = take_in(source, tmp_path, max_quarantined=0.5)

    assert set_aside(tmp_path / "quarantine") == {
        "daisy/again.png": "duplicate",
        "daisy/1.png": "conflicting-labels",
        "rose/daisy.png": "conflicting-labels",
    }
    assert span.summary.per_class == {"daisy": 3, "rose": 4}


def test_a_folder_that_grew_may_be_dropped_again(tmp_path):
    source = folders(tmp_path / "source", 3)
    first = take_in(source, tmp_path)
    copy(source / "daisy" / "0.png", source / "rose" / "daisy.png")
    for number in range(100, 108):
        picture(source / "rose" / f"{number}.png", number)

    second = take_in(source, tmp_path)

    assert set(images(second)) == {f"rose/{number}.png" for number in range(100, 108)}
    assert second.summary.quarantined == {"duplicate": 5, "conflicting-labels": 2}
    assert not {row["id"] for row in images(first).values()} & {
        row["id"] for row in images(second).values()
    }
    with pytest.raises(UserError, match=r"All \d+ images of this drop are in a span already"):
        take_in(folders(tmp_path / "same", 3), tmp_path)


def test_given_splits_are_kept_and_what_lies_on_two_sides_stays_on_the_judging_one(tmp_path):
    source = tmp_path / "source"
    for place, split in enumerate(SPLITS):
        for number in range(4):
            seed = 10 * place + number
            picture(source / split / "rose" / f"{seed}.png", seed)
            picture(source / split / "daisy" / f"{seed + 100}.png", seed + 100)
    copy(source / "test" / "rose" / "20.png", source / "train" / "rose" / "leak.png")
    similar(source / "eval" / "rose" / "10.png", source / "train" / "rose" / "alike.jpg")

    span = take_in(source, tmp_path)

    assert span.summary.per_split == {"train": 8, "eval": 8, "test": 8}
    assert set_aside(tmp_path / "quarantine") == {
        "train/rose/leak.png": "duplicate-across-splits",
        "train/rose/alike.jpg": "duplicate-across-splits",
    }
    assert all(row["split"] == file.split("/")[0] for file, row in images(span).items())


def test_a_manifest_may_give_the_split_of_some_images_only(tmp_path):
    rows = []
    for number in range(12):
        file = picture(tmp_path / "images" / f"{number}.png", number).name
        split = {"split": "test"} if number < 3 else {}
        rows.append({"file": f"images/{file}", "label": "rose", **split})
    rows.append({"file": "images/missing.png", "label": "rose"})

    span = take_in(manifest(tmp_path / "m.jsonl", rows), tmp_path, test_share=0.0)

    assert span.summary.per_split["test"] == 3
    assert set_aside(tmp_path / "quarantine") == {"images/missing.png": "unreadable"}


def test_few_images_in_a_class_are_taken_and_what_is_missing_is_said(tmp_path):
    span = take_in(folders(tmp_path / "source", 3), tmp_path, eval_share=0.0, test_share=0.0)
    assert span.summary.per_split == {"train": 6, "eval": 0, "test": 0}
    assert span.summary.warnings == (
        "No image for the eval split in: daisy, rose.",
        "No image for the test split in: daisy, rose.",
    )
    assert examples(span)["eval"] == []


def test_a_drop_of_one_class_or_of_one_that_is_not_in_the_schema_warns(tmp_path):
    span = take_in(folders(tmp_path / "source", 2, classes=["tulip"]), tmp_path)
    warnings = " ".join(span.summary.warnings)
    assert "Not in the schema: tulip. The data gate will refuse this span" in warnings
    assert "All images are of one class, 'tulip'" in warnings
