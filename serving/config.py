"""The section `serving`: where the model servers are."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ServingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model servers of a project, which `pin`, `promote` and `canary` wait for."""

    servers: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^https?://[^/\s]+/?$")], ...],
        Meta(
            description="REST addresses of the model servers, http://HOST:8501 each: who changes "
            "what serves waits until all of them follow. A name with several addresses stands for "
            "as many servers. Empty: nobody is asked."
        ),
    ] = ()
    wait_seconds: Annotated[
        float,
        Meta(gt=0, description="How long a server may take for each step before it is undone."),
    ] = 120.0
    mounted_at: Annotated[
        str,
        Meta(
            description="Where the servers see the folder paths.serving, as in a container; empty: "
            "where it is."
        ),
    ] = ""
