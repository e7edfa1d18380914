"""Which labels a model's servers know, and how requests are split between them.

    <base>/<model>/traffic.json    {"stable":3,"canary":4,"canary_percent":10.0}

`promote`, `canary` and `unpin` write the file; the gateway reads it. They keep an order, so that no
request is sent to a label that a server does not know: a label is named here only after every
server has it, and is no longer named here before it is taken away. Without the file requests name
no version, and the server chooses.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from graftline.serving.errors import UserError
from graftline.serving.file_system import sync, write

FILE_NAME = "traffic.json"
STABLE = "stable"
CANARY = "canary"


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """The labels that may be asked for, and the canary's share.

    Attributes:
        stable: the version that carries the label `stable`; None: nothing carries it, requests
            that are not the canary's name no version.
        canary: the version that carries the label `canary`; None: there is no canary.
        canary_percent: the share of callers, 0 to 100, who are answered by the canary.
    """

    stable: int | None = None
    canary: int | None = None
    canary_percent: Annotated[float, Meta(ge=0, le=100)] = 0.0


def read(root: Path) -> Traffic:
    """The split in force for the model in `<base>/<model>`.

    Raises:
        UserError: the file is not what `replace` writes.
        OSError: it cannot be read.
    """
    path = root / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Traffic)
    except FileNotFoundError:
        return Traffic()
    except msgspec.DecodeError as error:
        raise UserError(
            f"{path} is not a traffic file ({error}). `graftline promote V` writes it anew; "
            "without the file requests name no version."
        ) from error


def replace(root: Path, traffic: Traffic) -> None:
    """Puts another split in force, in one rename; a reader sees the old one or the new one.

    Raises:
        OSError: it cannot be written; then the old one stands.
    """
    path = root / FILE_NAME
    draft = root / ".graftline" / f"{FILE_NAME}-{uuid.uuid4().hex}"
    draft.parent.mkdir(exist_ok=True)
    try:
        write(draft, msgspec.json.encode(traffic))
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    sync(root)
