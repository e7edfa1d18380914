"""Configuration of the serving probe."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ProbeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a candidate is tried on a model server before it is published."""

    enabled: Annotated[
        bool, Meta(description="false: publish what the model gate blessed without trying it.")
    ] = True
    images: Annotated[
        int, Meta(ge=1, le=1000, description="Images of the eval split that the server is asked.")
    ] = 16
    max_difference: Annotated[
        float,
        Meta(
            ge=0,
            description="How much a probability may differ from that of the same model without a "
            "server.",
        ),
    ] = 1e-5
    max_latency_ms: Annotated[
        float,
        Meta(
            gt=0,
            description="Longest time for one image, in milliseconds: the median of all, over gRPC "
            "and over REST, after a first request.",
        ),
    ] = 2000.0
    timeout_seconds: Annotated[
        float, Meta(gt=0, description="In which the server has to start and to answer.")
    ] = 300.0
    command: Annotated[
        tuple[str, ...],
        Meta(
            description="The server, program and arguments, e.g. [tensorflow_model_server]; it is "
            "given TensorFlow Serving's flags for ports and model. Empty: the embedded server."
        ),
    ] = ()
