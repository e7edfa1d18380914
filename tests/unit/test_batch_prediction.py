"""`graftline predict-batch`: tables of predictions, whole parts, going on, what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pyarrow.parquet as parquet
import pytest
import tensorflow as tf

from graftline.components.batch_prediction.batch_size import BatchSize
from graftline.components.batch_prediction.tables import SUFFIXES
from graftline.pipeline.cli.main import main
from graftline.serving import tfrecords
from graftline.serving.base_path import BasePath
from graftline.serving.manifest import Manifest
from model_servers import colour_model
from model_servers import coloured_image as image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "größtes Blau": (0, 0, 255)}
NAMES = list(COLOURS)
PAGE = 4096
UNUSABLE = ("torn.png", "nowhere.png")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model(tmp_path_factory.mktemp("model") / "1")


@pytest.fixture
def graftline(tmp_path: Path, saved_model: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """The command on a project with version 1 in service."""
    (tmp_path / "graftline.yaml").write_text("model:\n  name: colours\n")
    _publish(tmp_path, saved_model, "a")

    def call(source: Path, output: Path, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            command = ["predict-batch", str(source), "--output", str(output), *arguments]
            main([*command, "--project", str(tmp_path)])
        return end.value.code, *capfd.readouterr()

    return call


def _publish(project: Path, saved_model: Path, model_id: str) -> None:
    base_path = BasePath(project / "serving" / "colours")
    base_path.publish(saved_model, Manifest(model="colours", model_id=model_id))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twenty images in two folders, whose name says their colour, and three bad files."""
    folder = tmp_path / "source"
    for number in range(20):
        name = NAMES[number % 3]
        path = folder / f"{number % 2}" / f"{number:02d}-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(COLOURS[name], size=(8 + number, 8)))
    (folder / "0" / "05-torn.png").write_bytes(image((255, 0, 0), size=(50, 50))[:60])
    (folder / "1" / "06-text.jpg").write_text("no image")
    (folder / "1" / "07-nowhere.png").symlink_to(folder / "not there")
    return folder


def rows(output: Path, table: str = "predictions") -> list[dict[str, Any]]:
    """All rows of a table of JSON lines, by file."""
    found = [
        json.loads(line)
        for path in output.glob(f"{table}-*.jsonl")
        for line in path.read_text("utf-8").splitlines()
    ]
    return sorted(found, key=lambda row: row["file"])


def labels(source: Path) -> list[str]:
    """What the usable images show, in the order of their names."""
    names = (path.relative_to(source).as_posix() for path in source.glob("*/*-*.png"))
    return [name.split("-")[1][:-4] for name in sorted(names) if not name.endswith(UNUSABLE)]


def assert_right(found: list[dict[str, Any]], source: Path) -> None:
    """Twenty rows, each with what is in its file."""
    assert len(found) == 20
    for row in found:
        content = (source / row["file"]).read_bytes()
        assert row["id"] == hashlib.sha256(content).hexdigest()
        assert row["label"] == row["file"].split("-")[1].removesuffix(".png")
        assert row["probability"] == pytest.approx(max(row["probabilities"].values()))
        assert set(row["probabilities"]) == set(NAMES)
        assert row["version"] == 1


def test_every_image_gets_a_row_and_every_bad_one_a_reason_in_a_table_of_its_own(
    graftline, source, tmp_path
):
    output = tmp_path / "output"
    code, said, _ = graftline(source, output, "--part-size", "7")
    assert code == 0
    assert_right(rows(output), source)
    assert {row["file"]: row["reason"] for row in rows(output, "bad")} == {
        "0/05-torn.png": "broken-pixels",
        "1/06-text.jpg": "not-an-image",
        "1/07-nowhere.png": "unreadable",
    }
    assert len(list(output.glob("predictions-*-of-00004.jsonl"))) == 4
    assert "20 of 23 predicted by version 1" in said
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["images"], sum(summary["bad"].values())) == (20, 3)


def test_csv_parquet_and_tfrecords_say_the_same(graftline, source, tmp_path):
    output = {kind: tmp_path / kind for kind in ("jsonl", "csv", "parquet", "tfrecord")}
    for kind, folder in output.items():
        assert graftline(source, folder, "--format", kind, "--part-size", "50")[0] == 0
    expected = rows(output["jsonl"])

    with next(output["csv"].glob("predictions-*.csv")).open(encoding="utf-8") as stream:
        of_csv = sorted(csv.DictReader(stream), key=lambda row: row["file"])
    table = parquet.read_table(next(output["parquet"].glob("predictions-*.parquet")))
    of_parquet = sorted(table.to_pylist(), key=lambda row: row["file"])
    [records] = output["tfrecord"].glob("predictions-*.tfrecord.gz")
    examples = [
        tf.train.Example.FromString(record).features.feature
        for record in tf.data.TFRecordDataset(str(records), "GZIP").as_numpy_iterator()
    ]
    of_records = {example["file"].bytes_list.value[0].decode(): example for example in examples}

    for row, in_csv, in_parquet in zip(expected, of_csv, of_parquet, strict=True):
        assert (in_csv["id"], in_csv["label"], in_csv["version"]) == (row["id"], row["label"], "1")
        assert in_parquet["id"] == row["id"]
        example = of_records[row["file"]]
        classes = [name.decode() for name in example["classes"].bytes_list.value]
        for place, name in enumerate(classes):
            probability = pytest.approx(row["probabilities"][name])
            assert float(in_csv[f"probability:{name}"]) == probability
            assert in_parquet["probabilities"][name] == probability
            assert example["probabilities"].float_list.value[place] == probability
    bad = parquet.read_table(next(output["parquet"].glob("bad-*.parquet"))).to_pylist()
    assert len(bad) == 3


def test_images_of_a_manifest_need_no_class(graftline, source, tmp_path):
    (tmp_path / "list.csv").write_text("file\nsource/0/00-red.png\nsource/missing.png\n")
    graftline(tmp_path / "list.csv", tmp_path / "output")
    assert [row["label"] for row in rows(tmp_path / "output")] == ["red"]
    assert [row["reason"] for row in rows(tmp_path / "output", "bad")] == ["unreadable"]


def test_tfrecords_are_read_up_to_a_damage_which_is_told(graftline, tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    for name in ("whole", "cut"):
        with tf.io.TFRecordWriter(str(folder / f"{name}.tfrecord")) as writer:
            for number in range(4):
                content = image(COLOURS[NAMES[number % 3]], size=(8 + number, 8))
                feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
                features = tf.train.Features(feature={"photo": feature} if number else {})
                writer.write(tf.train.Example(features=features).SerializeToString())
    cut = folder / "cut.tfrecord"
    cut.write_bytes(cut.read_bytes()[:-10])

    graftline(folder, tmp_path / "output", "drop.features.image=photo")
    code, _, errors = graftline(folder, tmp_path / "output")
    assert (code, "were begun with drop.features.image photo" in errors) == (2, True)
    assert [row["file"] for row in rows(tmp_path / "output")] == [
        *(f"cut.tfrecord[{number}]" for number in (1, 2)),
        *(f"whole.tfrecord[{number}]" for number in (1, 2, 3)),
    ]
    assert [(row["file"], row["reason"]) for row in rows(tmp_path / "output", "bad")] == [
        ("cut.tfrecord[0]", "missing-feature"),
        ("cut.tfrecord[3]", "damaged-tfrecord"),
        ("whole.tfrecord[0]", "missing-feature"),
    ]


def written(path: Path, count: int, options: str = "") -> Path:
    """A file of so many records, each an image of another width."""
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for number in range(count):
            content = image(COLOURS[NAMES[number % 3]], size=(8 + number, 8))
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
            features = tf.train.Features(feature={"image": feature})
            writer.write(tf.train.Example(features=features).SerializeToString())
    return path


@pytest.mark.parametrize(("options", "parts"), [("", 4), ("GZIP", 1)])
def test_a_file_of_records_becomes_parts_unless_it_is_compressed(
    graftline, tmp_path, options, parts
):
    records = written(tmp_path / "x.tfrecord", 20, options)
    output = tmp_path / "output"
    assert graftline(records, output, "--part-size", "6")[0] == 0
    found = {row["file"]: row["label"] for row in rows(output)}
    assert found == {f"x.tfrecord[{number}]": NAMES[number % 3] for number in range(20)}
    assert len(list(output.glob(f"predictions-*-of-{parts:05d}.jsonl"))) == parts


@pytest.mark.parametrize(("place", "good"), [(9, 9), (-2, 19)], ids=["length", "last checksum"])
def test_behind_a_damage_nothing_of_a_file_is_predicted_whatever_its_parts(
    graftline, tmp_path, place, good
):
    records = written(tmp_path / "x.tfrecord", 20)
    content = bytearray(records.read_bytes())
    with records.open("rb") as stream:
        begins = list(tfrecords.starts(stream, len(content)))
    content[begins[good] + place if place > 0 else place] ^= 1
    records.write_bytes(content)

    assert graftline(records, tmp_path / "output", "--part-size", "6")[0] == 0
    assert len(rows(tmp_path / "output")) == good
    [row] = rows(tmp_path / "output", "bad")
    assert row["reason"] == "damaged-tfrecord"
    assert f"after {good} records that were read" in row["detail"]


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    graftline, source, saved_model, disks, kind
):
    disk = disks.mount("2m")
    output, ballast = disk / "output", disk / "ballast"
    model = sum(path.stat().st_blocks * 512 for path in saved_model.rglob("*"))
    # Beside the version and what is listed, for some of the parts.
    room = model + PAGE * (23 + 15)
    ballast.write_bytes(b"0" * (shutil.disk_usage(disk).free - room))
    arguments = ("--part-size", "1", "--format", kind)
    code, _, errors = graftline(source, output, *arguments)
    assert (code, "is full" in errors, "goes on" in errors) == (2, True, True)
    assert not list(output.glob("summary.json"))

    ballast.unlink()
    before = {path: path.stat().st_mtime_ns for path in output.glob("predictions-*")}
    assert before
    assert graftline(source, output, *arguments)[0] == 0
    assert len(list(output.glob("predictions-*"))) == 23
    assert json.loads((output / "summary.json").read_text())["images"] == 20
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.fixture
def small_device(tmp_path: Path, graftline: Call) -> Callable[[int], None]:
    """Puts a version in service whose device has memory for so many images at once."""

    def make(most: int) -> None:
        _publish(tmp_path, colour_model(tmp_path / "small" / "1", most), "small")

    return make


def test_where_memory_ends_batches_become_smaller_and_every_image_is_predicted(
    graftline, source, tmp_path, small_device
):
    small_device(3)
    (source / "0" / "05-torn.png").unlink()  # it would be found by halving, too
    output = tmp_path / "output"
    assert graftline(source, output, "--batch-size", "16")[0] == 0
    assert {row["version"] for row in rows(output)} == {2}
    assert [row["label"] for row in rows(output)] == labels(source)
    told = re.findall(r"batches of (\d+) from now on", (output / ".graftline/log.txt").read_text())
    assert told == ["8", "4", "2"]


def test_an_image_that_the_memory_does_not_hold_is_named_and_the_same_command_goes_on(
    graftline, source, tmp_path, small_device
):
    small_device(3)
    wide = source / "1" / "19-green.png"
    usual = wide.read_bytes()
    wide.write_bytes(image(COLOURS["green"], size=(101, 8)))
    code, _, errors = graftline(source, tmp_path / "output", "--part-size", "2")
    assert (code, "does not hold one image (1/19-green.png)" in errors) == (2, True)

    wide.write_bytes(usual)
    assert graftline(source, tmp_path / "output")[0] == 0
    assert [row["label"] for row in rows(tmp_path / "output")] == labels(source)


def test_a_version_that_the_memory_does_not_hold_is_told(graftline, source, tmp_path, small_device):
    small_device(0)
    code, _, errors = graftline(source, tmp_path / "output")
    assert (code, "does not hold the version" in errors) == (2, True)


def test_a_prediction_that_is_complete_is_not_made_again(graftline, source, tmp_path):
    output = tmp_path / "output"
    graftline(source, output)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir() if path.is_file()}
    code, said, _ = graftline(source, output)
    assert (code, "complete since" in said) == (0, True)
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir() if path.is_file()}

    next(output.glob("predictions-*")).unlink()
    code, _, errors = graftline(source, output)
    assert (code, "was complete" in errors) == (2, True)


def test_two_predictions_do_not_share_a_folder(graftline, source, saved_model, tmp_path):
    output = tmp_path / "output"
    graftline(source, output)
    _publish(tmp_path, saved_model, "b")
    for other in (
        [source / "0", output],
        [source, output, "--version", "2"],
        [source, output, "--format", "csv"],
    ):
        code, _, errors = graftline(*other)
        assert (code, "holds predictions of" in errors) == (2, True)
    # Whoever does not ask for a version goes on with the one that was begun with.
    assert graftline(source, output)[0] == 0


def test_what_an_image_may_be_stays_the_same_until_the_end(graftline, source, tmp_path):
    output = tmp_path / "output"
    graftline(source, output, "drop.max_pixels=1000")
    code, _, errors = graftline(source, output)
    assert (code, "were begun with" in errors) == (2, True)
    assert "drop.max_pixels 1000" in errors
    assert graftline(source, output, "drop.max_pixels=1000")[0] == 0
    # Which feature it would be matters to records only.
    assert graftline(source, output, "drop.max_pixels=1000", "drop.features.image=photo")[0] == 0


def test_a_folder_with_other_things_is_left_alone(graftline, source, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    code, _, errors = graftline(source, output)
    assert (code, "holds other things" in errors) == (2, True)
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_told(graftline, source, tmp_path):
    (tmp_path / "output").write_text("a file")
    code, _, errors = graftline(source, tmp_path / "output")
    assert (code, "Name a folder" in errors) == (2, True)


def test_two_that_write_the_same_folder_at_once_are_told(graftline, source, tmp_path):
    output = tmp_path / "output"
    (output / ".graftline").mkdir(parents=True)
    (output / ".graftline" / "holder").write_text("process 7, since noon")
    with filelock.FileLock(output / ".graftline" / "lock"):
        code, _, errors = graftline(source, output)
    assert (code, "Another batch prediction writes to" in errors) == (2, True)
    assert "process 7" in errors


def test_a_folder_inside_the_source_is_refused(graftline, source):
    code, _, errors = graftline(source, source / "output")
    assert (code, "lies inside the source" in errors) == (2, True)


@pytest.mark.parametrize("wrong", ["source", "version"])
def test_a_mistake_leaves_no_folder_behind(graftline, source, tmp_path, wrong):
    output = tmp_path / "output"
    if wrong == "source":
        code, _, errors = graftline(tmp_path / "nowhere", output)
    else:
        code, _, errors = graftline(source, output, "--version", "7")
    assert (code, bool(errors)) == (2, True)
    assert not output.exists()


def test_a_source_without_any_usable_image_is_an_error_with_its_table(graftline, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("no image")
    assert graftline(tmp_path / "texts", tmp_path / "output")[0] == 2
    assert [row["reason"] for row in rows(tmp_path / "output", "bad")] == ["not-an-image"]


def test_batches_grow_while_that_is_faster_and_no_further():
    batches = BatchSize(first=16, most=1024)
    rates = {16: 100.0, 32: 180.0, 64: 200.0, 128: 205.0}
    for _ in range(30):
        batches.note(batches.size, batches.size / rates[batches.size])
    assert batches.size == 64


def test_batches_that_do_not_fit_shrink_for_good():
    batches = BatchSize(first=32, most=1024)
    assert batches.shrink(32)
    for _ in range(30):
        batches.note(batches.size, 1.0)
    assert batches.size == 16
    # Of one that was made before that, both halves may be too large.
    assert not batches.shrink(32)
    assert batches.size == 16
