"""From the body of a request to an encoded image: three ways to send one, all of them bounded.

    Content-Type: multipart/form-data    one file in the field `image`, as from a form or `curl -F`
    Content-Type: application/json       {"image": "<base64>"}
    any other, image/jpeg for one        the image itself

What the request claims of the image, its name and type, is not looked at: the content tells.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import create_form_parser
from starlette.requests import Request

from graftline.serving.gateway.refusals import Refusal, malformed, of_image
from graftline.serving.image_check import Header, Limits, UnusableImage, check_header

FIELD = "image"
# For the head of a form's part, or what stands around base64.
_AROUND = 16_384
# Beyond this it is worth a thread: a header can be long, too.
_SMALL = 65_536


class ImageRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image as JSON.

    Attributes:
        image: the encoded image, in base64 on the wire.
    """

    image: bytes


async def read_image(request: Request, limits: Limits, seconds: float) -> tuple[bytes, Header]:
    """The encoded image in a request.

    Args:
        request: its body is read here.
        limits: what the image may be.
        seconds: in which the whole body must arrive.

    Returns:
        The image, and what its header says.

    Raises:
        Refusal: the body is too long, too slow, not as it should be, or no image that is taken.
        ClientDisconnect: the client has gone.
    """
    content_type = request.headers.get("Content-Type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind == "application/x-www-form-urlencoded":
        raise Refusal(
            415,
            "bad-media-type",
            f"{kind} is not taken: send an image, a form (`curl -F {FIELD}=@FILE`) or JSON.",
        )
    longest = limits.max_bytes + _AROUND
    if kind == "application/json":
        longest = 4 * limits.max_bytes // 3 + _AROUND
    body = await _read(request, longest, seconds)
    if len(body) <= _SMALL:
        return _examine(kind, content_type, body, limits)
    return await asyncio.to_thread(_examine, kind, content_type, body, limits)


async def _read(request: Request, longest: int, seconds: float) -> bytes:
    too_long = Refusal(413, "body-too-large", f"The body has more than {longest:,} bytes.")
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > longest:
        raise too_long
    parts: list[bytes] = []
    size = 0

    try:
        with anyio.fail_after(seconds):
            async for part in request.stream():
                size += len(part)
                if size > longest:
                    raise too_long
                parts.append(part)
    except TimeoutError:
        raise Refusal(
            408, "slow-body", f"The body did not arrive within {seconds:g} seconds."
        ) from None
    return b"".join(parts)


def _examine(kind: str, content_type: str, body: bytes, limits: Limits) -> tuple[bytes, Header]:
    if kind == "application/json":
        body = _from_json(body)
    elif kind.startswith("multipart/"):
        body = _from_form(content_type, body)
    try:
        return body, check_header(body, limits)
    except UnusableImage as error:
        raise of_image(error) from None


def _from_json(body: bytes) -> bytes:
    try:
        return msgspec.json.decode(body, type=ImageRequest).image
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(f'The body must be {{"{FIELD}": "<base64>"}}: {error}.') from None


def _from_form(content_type: str, body: bytes) -> bytes:
    files: list[bytes] = []

    def take(part: Any) -> None:
        # At once, lest a body of a hundred thousand parts is taken apart to the end.
        if files or (part.field_name or b"") != FIELD.encode():
            raise malformed(f"A form must have one file in the field `{FIELD}`, and no more.")
        part.file_object.seek(0)
        files.append(part.file_object.read())

    def refuse(field: Any) -> None:
        raise malformed(f"A form must have one file in the field `{FIELD}`, and no more.")

    try:
        parser = create_form_parser(
            {"Content-Type": content_type.encode("latin-1")},
            refuse,
            take,
            # In memory: it is there already, and its size was looked at.
            {"MAX_MEMORY_FILE_SIZE": len(body) + 1},
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError, KeyError, AssertionError) as error:
        raise malformed(f"The form cannot be read: {error}.") from None
    if not files:
        raise malformed(f"The form has no whole file in the field `{FIELD}`.")
    return files[0]
