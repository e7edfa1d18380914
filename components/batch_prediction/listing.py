"""Which images a batch prediction is about: listed once, divided into parts, read part by part.

What is listed are names, never images: they are read where they are predicted, a few at a time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from graftline.components.ingest.own_records import WHOLE, Piece, images, pieces
from graftline.components.ingest.sources import TFRECORDS, Source, unlabelled
from graftline.components.progress import report
from graftline.serving.errors import UserError
from graftline.serving.image_check import Limits, UnusableImage, check_header, check_size


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One file: its name within the source, its path, and which of its records, if it has any."""

    name: str
    path: bytes
    piece: Piece = WHOLE


class Read(msgspec.Struct, frozen=True):
    """One image that was read.

    Attributes:
        name: of its file within the source; of a record with its number.
        content: the encoded image, or why there is none.
        pixels: what decoding it takes.
    """

    name: str
    content: bytes | UnusableImage
    pixels: int = 0


def write_listing(source: Source, folder: Path, part_size: int) -> tuple[int, int]:
    """Lists a source, one file per part.

    No part has records of two files, and a compressed file is one part.

    Args:
        source: of kind FILES, MANIFEST or TFRECORDS.
        folder: for the listing.
        part_size: images per part.

    Returns:
        The number of parts, and of images where they are known, else 0.

    Raises:
        UserError: there is nothing, or it cannot be listed.
    """
    parts = files = 0
    for items in _parts(source, part_size):
        (folder / f"{parts:05d}.msgpack").write_bytes(msgspec.msgpack.encode(items))
        parts += 1
        files += len(items)
        report(f"listing {source.path}  {files}")
    if not parts:
        raise UserError(f"The source {source.path} holds no images. Nothing was predicted.")
    return parts, 0 if source.kind == TFRECORDS else files


def _parts(source: Source, part_size: int) -> Iterator[list[Item]]:
    entries = unlabelled(source)
    if source.kind != TFRECORDS:
        while chunk := list(itertools.islice(entries, part_size)):
            yield [Item(_printable(entry.name), os.fsencode(entry.path)) for entry in chunk]
        return
    for entry in entries:
        for piece in pieces(entry.path, part_size):
            yield [Item(_printable(entry.name), os.fsencode(entry.path), piece)]


def read_part(
    listing: Path, number: int, kind: str, feature: str, limits: Limits, ahead: int
) -> Iterator[Read]:
    """The images of a part in their order, read by threads while earlier ones are predicted.

    Args:
        listing: folder of the listing.
        number: of the part.
        kind: of the source.
        feature: with the encoded image, of records.
        limits: what an image may be.
        ahead: how many images are read ahead at most.
    """
    from graftline.components.ingest.stages import in_order

    listed = (listing / f"{number:05d}.msgpack").read_bytes()
    items = msgspec.msgpack.decode(listed, type=list[Item])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if kind != TFRECORDS:
            yield from in_order(pool, lambda item: _file(item, limits), items, ahead)
            return
        for item in items:
            path = Path(os.fsdecode(item.path))
            records = enumerate(images(path, feature, item.piece), item.piece.first)
            named = ((f"{item.name}[{position}]", content) for position, content in records)
            yield from in_order(pool, lambda one: _checked(*one, limits), named, ahead)


def _file(item: Item, limits: Limits) -> Read:
    path = Path(os.fsdecode(item.path))
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        return Read(item.name, UnusableImage("not-an-image", "it is no plain file"))
    try:
        with path.open("rb") as stream:
            check_size(os.fstat(stream.fileno()).st_size, limits)
            content = stream.read(limits.max_bytes + 1)
    except OSError as error:
        return Read(item.name, UnusableImage("unreadable", error.strerror or str(error)))
    except UnusableImage as unusable:
        return Read(item.name, unusable)
    return _checked(item.name, content, limits)


def _checked(name: str, content: bytes | UnusableImage, limits: Limits) -> Read:
    if isinstance(content, UnusableImage):
        return Read(name, content)
    try:
        return Read(name, content, check_header(content, limits).pixels)
    except UnusableImage as unusable:
        return Read(name, unusable)


def _printable(name: str) -> str:
    """A name that text in UTF-8 can hold, whatever bytes the file's own is made of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
