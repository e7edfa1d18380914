"""A drop becomes a version of a span: its number, its records, its quarantine."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from drops import CLASSES, examples, folders, images, picture, quarantine_list, set_aside, take_in

from graftline.components.ingest import shards
from graftline.components.ingest.spans import find_span, latest_span, list_spans, newest_versions
from graftline.serving.errors import UserError


def test_images_are_stored_as_they_came_with_what_was_found_in_them(tmp_path):
    source = folders(tmp_path / "source", 3)
    jpeg = picture(source / "rose" / "photo.jpg", 50, quality=40)

    span = take_in(source, tmp_path)

    taken = {}
    for split, found in examples(span).items():
        for example in found:
            feature = example.features.feature
            taken[feature["image"].bytes_list.value[0]] = (split, feature)
    assert set(taken) == {path.read_bytes() for path in source.rglob("*.*")}
    split, feature = taken[jpeg.read_bytes()]
    assert feature["label"].bytes_list.value == [b"rose"]
    assert feature["id"].bytes_list.value == [
        hashlib.sha256(jpeg.read_bytes()).hexdigest().encode()
    ]
    assert feature["width"].int64_list.value == feature["height"].int64_list.value == [24]
    assert feature["channels"].int64_list.value == [1]
    assert feature["byte_size"].int64_list.value == [jpeg.stat().st_size]
    assert images(span)["rose/photo.jpg"]["split"] == split


def test_the_same_drop_twice_gives_the_same_bytes(tmp_path):
    source = folders(tmp_path / "source", 6)
    one = take_in(source, tmp_path / "one")
    shutil.copytree(source, tmp_path / "copy")
    other = take_in(tmp_path / "copy", tmp_path / "other")
    assert one.summary.shards == other.summary.shards
    for name, digest in one.summary.shards.items():
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
        assert hashlib.sha256((one.path / name).read_bytes()).hexdigest() == digest


def test_several_shards_hold_each_image_once(tmp_path):
    source = tmp_path / "source"
    for number in range(4):
        for name in CLASSES:
            path = picture(source / name / f"{number}.png", number + 10 * len(name))
            # Bytes behind the end of an image are kept and make it as large as a photograph.
            path.write_bytes(path.read_bytes() + os.urandom(300_000))
    span = take_in(source, tmp_path, shard_bytes=1_000_000, eval_share=0.0, test_share=0.0)
    assert [name for name in span.summary.shards if name.startswith("train/")] == [
        f"train/images-0000{place}-of-00002.tfrecord.gz" for place in range(2)
    ]
    assert span.summary.bytes == sum(path.stat().st_size for path in source.rglob("*.png"))
    ids = [e.features.feature["id"].bytes_list.value[0] for e in examples(span)["train"]]
    assert len(set(ids)) == len(ids) == 8


def test_many_small_images_are_several_shards_too(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_MOST_IMAGES", 5)
    source = folders(tmp_path / "source", 6)
    span = take_in(source, tmp_path, eval_share=0.0, test_share=0.0)
    assert [name for name in span.summary.shards if name.startswith("train/")] == [
        f"train/images-0000{place}-of-00003.tfrecord.gz" for place in range(3)
    ]
    ids = [e.features.feature["id"].bytes_list.value[0] for e in examples(span)["train"]]
    assert len(set(ids)) == len(ids) == 12


def test_what_cannot_be_used_is_kept_with_its_reason(tmp_path):
    source = folders(tmp_path / "source", 6)
    long_name = "界" * 82 + ".jpg"
    broken = {"rose/broken.jpg": b"\xff\xd8\xff", f"rose/{long_name}": b"no image"}
    for name, content in broken.items():
        (source / name).write_bytes(content)
    (source / "rose" / "dangling.png").symlink_to("nowhere.png")
    (source / "rose" / "ring.png").symlink_to("ring.png")
    os.mkfifo(source / "rose" / "pipe.png")
    (source / "rose" / ".DS_Store").write_bytes(b"litter")
    picture(source / "rose" / "folder.jpg" / "inside.png", 70)

    span = take_in(source, tmp_path, max_quarantined=0.5)

    folder = tmp_path / "quarantine" / "span-1" / "version-1"
    rows = {row["file"]: row for row in quarantine_list(folder)}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "rose/broken.jpg": "broken-header",
        f"rose/{long_name}": "not-an-image",
        "rose/dangling.png": "unreadable",
        "rose/ring.png": "unreadable",
        "rose/pipe.png": "not-an-image",
    }
    for name, content in broken.items():
        assert (folder / rows[name]["kept"]).read_bytes() == content
    assert "its link leads nowhere" in rows["rose/dangling.png"]["detail"]
    assert (rows["rose/pipe.png"]["detail"], rows["rose/pipe.png"]["kept"]) == (
        "it is no plain file",
        None,
    )
    assert span.summary.ignored == 1
    assert "rose/folder.jpg/inside.png" in images(span)


def test_a_class_name_longer_than_a_files_name_may_be_is_no_obstacle(tmp_path):
    rows = "".join(f"{n}.png,{'界' * 200}\n" for n in range(5)) + f"broken.png,{'界' * 200}\n"
    (tmp_path / "m.csv").write_text("file,label\n" + rows, encoding="utf-8")
    (tmp_path / "broken.png").write_bytes(b"no image")
    for number in range(5):
        picture(tmp_path / f"{number}.png", number)
    take_in(tmp_path / "m.csv", tmp_path)
    [row] = quarantine_list(tmp_path / "quarantine")
    assert (tmp_path / "quarantine" / "span-1" / "version-1" / row["kept"]).is_file()


def test_a_file_that_may_not_be_read_is_set_aside(stranger):
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o777)
        source = folders(Path(shared) / "source", 3)
        (source / "rose" / "0.png").chmod(0)
        stranger()
        take_in(source, Path(shared))
        assert set_aside(Path(shared) / "quarantine") == {"rose/0.png": "unreadable"}
        os.seteuid(0)


def test_a_drop_of_which_too_much_is_unusable_is_refused_whole(tmp_path):
    source = folders(tmp_path / "source", 3)
    for number in range(2):
        (source / "rose" / f"broken-{number}.jpg").write_bytes(b"\xff\xd8\xff")
    for _ in range(3):
        with pytest.raises(UserError, match=r"refused whole: 2 of 8 .*at most 20%") as refused:
            take_in(source, tmp_path)
        assert "2 broken-header, e.g. rose/broken-0.jpg: " in str(refused.value)
    assert list_spans(tmp_path / "spans") == []
    assert not list((tmp_path / "spans").glob("span-*"))
    lists = sorted((tmp_path / "quarantine").glob("refused-*/quarantine.jsonl"))
    assert len(lists) == 3
    assert len(quarantine_list(lists[0].parent)) == 2
    assert not list((tmp_path / "quarantine").rglob("*.jpg"))


@pytest.mark.parametrize("content", [{}, {"rose/notes.txt": b"no image"}, {"rose/.DS_Store": b""}])
def test_a_source_without_images_leaves_no_span(tmp_path, content):
    (tmp_path / "source" / "rose").mkdir(parents=True)
    for name, data in content.items():
        (tmp_path / "source" / name).write_bytes(data)
    with pytest.raises(UserError, match=r"holds no images|1 of 1 files cannot be used"):
        take_in(tmp_path / "source", tmp_path, max_quarantined=1.0)
    assert list_spans(tmp_path / "spans") == []


def test_two_classes_that_differ_in_case_leave_no_span(tmp_path):
    with pytest.raises(UserError, match="differ only in case: 'rose' and 'Rose'"):
        take_in(folders(tmp_path / "source", 1, classes=["Rose", "daisy"]), tmp_path)
    assert list_spans(tmp_path / "spans") == []


# Numbers and versions.


def test_spans_count_up_by_number_and_a_version_replaces_one(tmp_path):
    spans = tmp_path / "spans"
    first = folders(tmp_path / "first", 3)
    take_in(first, tmp_path, span=9)
    tenth = take_in(folders(tmp_path / "second", 3, first=100), tmp_path)
    assert (tenth.number, latest_span(spans)) == (10, tenth)

    with pytest.raises(UserError, match=r"Span 9 is there already.*--span 9 --version 2"):
        take_in(first, tmp_path, span=9)
    with pytest.raises(UserError, match="The next version of span 9 is 2, not 3"):
        take_in(first, tmp_path, span=9, version=3)
    with pytest.raises(UserError, match="belongs to --span"):
        take_in(first, tmp_path, version=2)

    again = take_in(first, tmp_path, span=9, version=2)
    assert [(s.number, s.version) for s in list_spans(spans)] == [(9, 1), (9, 2), (10, 1)]
    assert newest_versions(spans) == [again, tenth]
    assert find_span(spans, 9) == again
    # The images that it replaces are no reason to set its own aside; those of others are.
    assert again.summary.images == 6
    with pytest.raises(UserError, match="All 6 images"):
        take_in(folders(tmp_path / "third", 3, first=100), tmp_path, span=9, version=3)


def test_a_replaced_image_keeps_its_side_of_the_split(tmp_path):
    source = folders(tmp_path / "source", 10)
    shares = {"eval_share": 0.3, "test_share": 0.3}
    first = images(take_in(source, tmp_path, **shares))
    # Other shares would deal them out in another way.
    again = take_in(source, tmp_path, span=1, version=2, eval_share=0.0, test_share=0.0)
    assert {f: r["split"] for f, r in images(again).items()} == {
        f: r["split"] for f, r in first.items()
    }


def test_something_in_the_place_of_a_span_is_found_before_the_work(tmp_path):
    (tmp_path / "spans" / "span-1" / "version-1" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"span-1/version-1 is there, but is no complete span"):
        take_in(folders(tmp_path / "source", 1), tmp_path)


@pytest.mark.parametrize("damage", ["lost", "no table", "damaged within"])
def test_the_table_of_all_images_is_made_anew(taken, damage):
    project, source = taken
    table = project / "spans" / ".graftline" / "fingerprints.sqlite"
    if damage == "lost":
        table.unlink()
    elif damage == "no table":
        table.write_bytes(b"no table")
    else:
        with pytest.raises(UserError, match="All 2 images"):
            take_in(source, project)
        table.write_bytes(table.read_bytes()[:4096] + os.urandom(table.stat().st_size - 4096))
        with pytest.raises(UserError, match=r"was damaged .*Drop again"):
            take_in(source, project)
    with pytest.raises(UserError, match="All 2 images of this drop are in a span already"):
        take_in(source, project)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project with one span, and the source that it came from."""
    project = tmp_path_factory.mktemp("taken")
    source = folders(project / "source", 1)
    take_in(source, project)
    return project, source


def test_a_span_changed_by_another_hand_is_named(tmp_path):
    span = take_in(folders(tmp_path / "source", 1), tmp_path)
    images_file = span.path / "images.parquet"
    (span.path / "drop.json").write_bytes(b"{")
    for damage in (lambda: images_file.write_bytes(b"no table"), images_file.unlink):
        damage()
        with pytest.raises(UserError, match=r"images\.parquet cannot be read"):
            take_in(folders(tmp_path / "more", 1, first=50), tmp_path)
    with pytest.raises(UserError, match=r"drop\.json cannot be read"):
        _ = span.summary
