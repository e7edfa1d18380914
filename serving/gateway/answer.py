"""What the gateway answers."""

from __future__ import annotations

import msgspec


class Prediction(msgspec.Struct, frozen=True, rename={"name": "class"}):
    """A class and its probability, 0 to 1."""

    name: str
    score: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The classes of an image, the likeliest first, and which version said so."""

    model: str
    version: int
    label: str | None
    predictions: list[Prediction]
    request_id: str
