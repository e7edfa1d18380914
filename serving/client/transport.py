"""What a client wants of a server, whether it is asked over gRPC or REST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from graftline.serving.server.status import Code, Failure
from graftline.serving.signature import INPUT, OUTPUTS

# The longest answer: a thousand classes for each of a batch's images are a few megabytes.
MOST_BYTES = 64 << 20


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which model, and which version of it; without both the server chooses."""

    model: str
    version: int | None = None
    label: str = ""

    def __str__(self) -> str:
        if self.label:
            return f"version of {self.model} that is labelled {self.label}"
        return f"version {self.version} of {self.model}" if self.version else f"model {self.model}"


class Description(msgspec.Struct, frozen=True):
    """What a server says of a version.

    Attributes:
        version: its number.
        inputs: names of what the signature `serving_default` takes; empty without the signature.
        outputs: names of what it gives.
    """

    version: int
    inputs: frozenset[str]
    outputs: frozenset[str]

    @property
    def classifies_images(self) -> bool:
        """Whether encoded images go in, and classes and scores come out."""
        return INPUT in self.inputs and self.outputs.issuperset(OUTPUTS)


class Answer(msgspec.Struct, frozen=True):
    """What a server answered to some images.

    Attributes:
        version: that answered; None where the protocol does not tell.
        images: for each image its classes with their scores, in the model's order.
    """

    version: int | None
    images: list[list[tuple[str, float]]]


class Transport(Protocol):
    """A connection. Each call is one request, tried once; its time is bounded by `seconds`.

    Both raise Failure: what the server answered, UNAVAILABLE where it cannot be reached,
    DEADLINE_EXCEEDED after `seconds`, UNIMPLEMENTED where what answers is no model server.
    """

    # Whether an answer names the version that gave it.
    tells_version: bool

    def describe(self, asked: Asked, seconds: float) -> Description:
        """Asks for a version's number and signature."""

    def classify(self, asked: Asked, images: Sequence[bytes], seconds: float) -> Answer:
        """Asks for the classes of a batch of encoded images."""

    def close(self) -> None:
        """Closes connections."""


def strange(said: str) -> Failure:
    """The failure of what answers, but not as a model server would."""
    return Failure(Code.UNIMPLEMENTED, said)
