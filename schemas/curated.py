"""Reads and writes the curated schema of a project.

`image_classification.pbtxt` says what every record of a span holds and within which bounds; a
project's schema is that text with the classes as the domain of the label. The user reviews and
commits it: it changes when a person adds a class, never because the data did.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from graftline.serving.errors import UserError

FILE_NAME = "schema.pbtxt"
LABEL = "label"

# What the statistics describe: the record's identity is not among them, and of the image, which
# the schema marks as such, they count presence and bytes, never values.
DESCRIBED_FEATURES = (
    "image",
    LABEL,
    "width",
    "height",
    "channels",
    "byte_size",
    "luma_mean",
    "luma_std",
)


def build(classes: Sequence[str]) -> schema_pb2.Schema:
    """The schema of labelled images of these classes.

    Args:
        classes: class names; their order is the order of the model's outputs.
    """
    text = resources.files(__package__).joinpath("image_classification.pbtxt").read_text("utf-8")
    schema = text_format.Parse(text, schema_pb2.Schema())
    domain = schema.string_domain.add(name=LABEL)
    domain.value.extend(classes)
    return schema


def write(schema: schema_pb2.Schema, path: Path) -> None:
    """Writes a schema as text, with a heading that says whose it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    heading = (
        "# What every record must be. Review it and commit it: a drop that does not conform is\n"
        "# refused. A new class is added at the end of string_domain, by a person.\n"
    )
    path.write_text(heading + text_format.MessageToString(schema, as_utf8=True), encoding="utf-8")


def read(path: Path) -> schema_pb2.Schema:
    """Reads a project's schema.

    Raises:
        UserError: the file is missing, is no schema, or names no or doubtful classes.
    """
    try:
        schema = text_format.Parse(path.read_text(encoding="utf-8"), schema_pb2.Schema())
    except OSError as error:
        raise UserError(f"The schema {path} cannot be read: {error.strerror}.") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(
            f"The schema {path} is not a TensorFlow Metadata schema: {error}."
        ) from error
    names = classes(schema)
    if len(names) < 2:
        raise UserError(
            f"The schema {path} names {len(names)} classes in the domain of `{LABEL}`; a "
            "classifier needs at least two. Add the missing ones to string_domain."
        )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"The schema {path} names these classes twice: {', '.join(twice)}.")
    return schema


def classes(schema: schema_pb2.Schema) -> list[str]:
    """Class names in the order of the model's outputs."""
    return [
        value for domain in schema.string_domain if domain.name == LABEL for value in domain.value
    ]
