"""Images made on the spot and drops of them in this process: real files, the real pipeline."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.entries import Entry
from graftline.components.ingest.spans import SPLITS, Span, list_spans
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options

CLASSES = ("daisy", "rose")


def pattern(seed: int, side: int = 24) -> Image.Image:
    """A coarse grey pattern that resembles no other one, also when it is resized."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def picture(path: Path, seed: int, **options: Any) -> Path:
    """Writes an image that resembles no other one; the name says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern(seed).save(path, **options)
    return path


def folders(root: Path, count: int = 4, first: int = 0, classes: Sequence[str] = CLASSES) -> Path:
    """Writes a folder per class with so many different images each, their seeds from `first` on."""
    for place, name in enumerate(classes):
        for number in range(count):
            picture(root / name / f"{number}.png", first + place * count + number)
    return root


def take_in(
    source: Path, project: Path, *, classes: Sequence[str] = CLASSES, **settings: Any
) -> Span:
    """Takes a drop in; what is no setting of the section `drop` is passed on."""
    from graftline.components.ingest.drop import drop

    own = {name: settings.pop(name) for name in ("span", "version") if name in settings}
    options = settings.pop("beam_options", beam_options(BeamConfig(), "drop"))
    return drop(
        source,
        project / "spans",
        project / "quarantine",
        DropConfig(**settings),
        classes,
        beam_options=options,
        **own,
    )


def listing(source: Path) -> list[Entry]:
    """What a source of folders or a manifest lists, by name."""
    from graftline.components.ingest import sources

    return sorted(sources.entries(sources.detect(source)), key=lambda entry: entry.name)


def set_aside(folder: Path) -> dict[str, str]:
    """Reason of every file that a quarantine lists."""
    return {row["file"]: row["reason"] for row in quarantine_list(folder)}


def quarantine_list(folder: Path) -> list[dict[str, Any]]:
    """The rows of all lists below a quarantine."""
    return [
        json.loads(line)
        for path in sorted(folder.rglob("quarantine.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]


def images(span: Span) -> dict[str, dict[str, Any]]:
    """What a span says of each of its images, by file."""
    import pyarrow.parquet as parquet

    return {
        row["file"]: row for row in parquet.read_table(span.path / "images.parquet").to_pylist()
    }


def examples(span: Span) -> dict[str, list[Any]]:
    """The tf.Examples of a span by split, read without TensorFlow's reader."""
    import tensorflow as tf

    found: dict[str, list[Any]] = {}
    for split in SPLITS:
        shards = sorted((span.path / split).iterdir())
        data = b"".join(gzip.decompress(path.read_bytes()) for path in shards)
        found[split] = [tf.train.Example.FromString(record) for record in _frames(data)]
    return found


def _frames(data: bytes) -> Iterable[bytes]:
    position = 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 8], "little")
        yield data[position + 12 : position + 12 + size]
        position += size + 16


def manifest(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    """Writes a manifest of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def assert_nothing_or_whole(project: Path) -> bool:
    """Whether there is a span; if so, that it is whole."""
    spans = list_spans(project / "spans")
    for span in spans:
        for name, digest in span.summary.shards.items():
            assert hashlib.sha256((span.path / name).read_bytes()).hexdigest() == digest
        assert (project / "quarantine" / "span-1" / "version-1" / "quarantine.jsonl").is_file()
    names = {path.name for path in (project / "spans").glob("span-*")}
    assert names == {f"span-{span.number}" for span in spans}
    return bool(spans)


def assert_nothing_left(project: Path) -> None:
    """There is no span, and nothing of one but the lock and the table of all images."""
    assert not assert_nothing_or_whole(project)
    left = {path.name for path in (project / "spans" / ".graftline").glob("*")}
    assert left <= {"drop.lock", "drop.holder", "fingerprints.sqlite"}
    assert not list((project / "quarantine").rglob("*"))
