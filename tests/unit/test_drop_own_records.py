"""A user's own TFRecords as a source: which features are taken, and what a damage costs."""

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
import tensorflow as tf
from drops import examples, picture, quarantine_list, take_in

from graftline.components.ingest import own_records, sources
from graftline.components.ingest.config import FeaturesConfig
from graftline.components.ingest.entries import Entry
from graftline.components.ingest.survey import survey
from graftline.serving.errors import UserError


def example(**features: object) -> bytes:
    """A serialized tf.Example; text and bytes as byte strings, numbers as numbers."""

    def feature(value: object) -> tf.train.Feature:
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        data = value.encode() if isinstance(value, str) else value
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))

    named = {name: feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def write(path: Path, serialized: Iterable[bytes], compression: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in serialized:
            writer.write(record)
    return path


def roses(count: int) -> list[bytes]:
    return [example(image=b"%d" % number * 300, label="rose") for number in range(count)]


def listed(source: Path, tmp_path: Path, **features: object) -> list[Entry]:
    found = sources.detect(source)
    return list(own_records.entries(found, FeaturesConfig(**features), tmp_path / "unpacked"))


def contents(entries: Iterable[Entry]) -> list[bytes]:
    return [e.path.read_bytes()[e.start : e.start + e.size] for e in entries if not e.reason]


def refusals(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    return [(entry.name, entry.reason) for entry in entries if entry.reason]


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_images_and_classes_are_taken_out_in_order(tmp_path, compression):
    path = write(tmp_path / "flowers.tfrecord", roses(3), compression)
    found = listed(path, tmp_path)
    assert [entry.name for entry in found] == [f"flowers.tfrecord[{n}]" for n in range(3)]
    assert [entry.label for entry in found] == ["rose"] * 3
    assert contents(found) == [b"0" * 300, b"1" * 300, b"2" * 300]


@pytest.mark.parametrize("label", ["a/b", "sun flower", "caf\u00e9"])
def test_a_class_may_be_called_almost_anything(tmp_path, label):
    path = write(tmp_path / "x.tfrecord", [example(image=b"1", label=label)])
    assert [entry.label for entry in listed(path, tmp_path)] == [label]


def test_two_spellings_of_one_accent_are_one_class(tmp_path):
    records = [example(image=b"1", label=label) for label in ("caf\u00e9", "cafe\u0301")]
    found = listed(write(tmp_path / "x.tfrecord", records), tmp_path)
    assert {entry.label for entry in found} == {"caf\u00e9"}


def test_labels_may_be_numbers_when_the_configuration_names_the_classes(tmp_path):
    records = [example(image=b"1", label=number) for number in (0, 1, 2, -1)]
    found = listed(write(tmp_path / "x.tfrecord", records), tmp_path, classes=("daisy", "rose"))
    assert [entry.label for entry in found] == ["daisy", "rose", None, None]
    assert [entry.reason for entry in found] == ["", "", "unusable-label", "unusable-label"]
    assert "[2], of 2 classes that drop.features.classes names" in found[2].detail


def test_the_configuration_maps_other_names_of_features(tmp_path):
    record = example(**{"image/encoded": b"1", "image/class/text": "rose", "part": "valid"})
    found = listed(
        write(tmp_path / "x.tfrecord", [record]),
        tmp_path,
        image="image/encoded",
        label="image/class/text",
        split="part",
    )
    assert [(e.label, e.split) for e in found] == [("rose", "eval")]


def test_a_record_without_the_mapped_feature_is_told_with_what_it_has(tmp_path):
    records = [example(picture=b"1", label="rose"), *roses(1)]
    found = listed(write(tmp_path / "x.tfrecord", records), tmp_path)
    assert refusals(found) == [("x.tfrecord[0]", "missing-feature")]
    assert "no feature `image`; it has: label, picture" in found[0].detail


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"\xff\xff no example", "not-an-example"),
        (example(image=7, label="rose"), "missing-feature"),
        (example(image=b"1", label=b"\xff\xfe"), "unusable-label"),
        (example(image=b"1", label=""), "unusable-label"),
        (example(image=b"1", label="rose", part="holdout"), "unusable-split"),
    ],
    ids=["no example", "a number for an image", "no text", "no label", "no split"],
)
def test_a_record_that_cannot_be_used_costs_itself_only(tmp_path, record, reason):
    part = {"split": "part"} if reason == "unusable-split" else {}
    good = example(image=b"1", label="rose", part="train")
    found = listed(write(tmp_path / "x.tfrecord", [record, good]), tmp_path, **part)
    assert refusals(found) == [("x.tfrecord[0]", reason)]
    assert found[1].label == "rose"


def test_splits_come_from_the_folders_of_the_files(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / "source" / split / "x.tfrecord", roses(1))
    found = listed(tmp_path / "source", tmp_path)
    assert [(e.name, e.split) for e in found] == [
        ("train/x.tfrecord[0]", "train"),
        ("validation/x.tfrecord[0]", "eval"),
    ]


FRAME = len(roses(1)[0]) + 16


def changed(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGES = {
    "cut within an image": (lambda data: data[:-100], 3),
    "cut within the last checksum": (lambda data: data[:-2], 3),
    "cut within a length": (lambda data: data[: 2 * FRAME + 5], 2),
    "bad checksum of an image": (lambda data: changed(data, FRAME + 200), 1),
    "bad checksum of a length": (lambda data: changed(data, 3 * FRAME + 9), 3),
    "nonsense": (lambda data: b"hello, this is no file of records", 0),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_named_with_its_place_and_what_stood_before_it_is_taken(
    tmp_path, damage, compressed
):
    do, whole = DAMAGES[damage]
    path = write(tmp_path / "x.tfrecord", roses(4))
    data = do(path.read_bytes())
    path.write_bytes(gzip.compress(data) if compressed else data)

    found = listed(path, tmp_path)

    # What is whole behind a damage is not reached, wherever the damage is.
    assert len(contents(found)) == whole
    assert refusals(found) == [("x.tfrecord", "damaged-tfrecord")]
    assert f"after {whole} records that were read" in found[-1].detail


def test_a_compressed_file_that_is_cut_is_damaged(tmp_path):
    path = write(tmp_path / "x.tfrecord.gz", roses(4), "GZIP")
    path.write_bytes(path.read_bytes()[:-10])
    found = listed(path, tmp_path)
    assert refusals(found) == [("x.tfrecord.gz", "damaged-tfrecord")]


def test_a_file_without_records_is_no_damage(tmp_path):
    assert listed(write(tmp_path / "x.tfrecord", []), tmp_path) == []


def test_images_of_records_become_a_span_and_the_damaged_file_is_kept(tmp_path):
    encoded = [picture(tmp_path / f"{n}.png", n).read_bytes() for n in range(8)]
    records = [example(image=data, label=f"r/{n % 2}") for n, data in enumerate(encoded)]
    path = write(tmp_path / "source" / "x.tfrecord", records)
    path.write_bytes(path.read_bytes() + struct.pack("<Q", 1 << 40))

    span = take_in(path.parent, tmp_path, classes=["r/0", "r/1"])

    taken = [e.features.feature for split in examples(span).values() for e in split]
    assert {f["image"].bytes_list.value[0] for f in taken} == set(encoded)
    assert span.summary.per_class == {"r/0": 4, "r/1": 4}
    [row] = quarantine_list(tmp_path / "quarantine")
    assert row["reason"] == "damaged-tfrecord"
    kept = tmp_path / "quarantine" / "span-1" / "version-1" / row["kept"]
    assert kept.read_bytes() == path.read_bytes()


def test_a_survey_reads_records_without_keeping_them(tmp_path):
    encoded = [picture(tmp_path / f"{n}.png", n).read_bytes() for n in range(6)]
    records = [example(image=data, label=f"c{n % 2}") for n, data in enumerate(encoded)]
    found = survey(write(tmp_path / "x.tfrecord", records))
    assert found.classes == {"c0": 3, "c1": 3}
    assert found.formats == {"PNG": 6}
    assert (found.median_width, found.median_height) == (24, 24)


def test_a_survey_of_records_without_the_usual_features_says_what_they_have(tmp_path):
    path = write(tmp_path / "x.tfrecord", [example(picture=b"1", label="rose")])
    with pytest.raises(UserError, match=r"x.tfrecord\[0\]: no feature `image`; it has: label, pic"):
        survey(path)
