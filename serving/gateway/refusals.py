"""How the gateway says no: an HTTP status, a short reason for tables, a sentence for people.

The body of a refusal is a problem document (RFC 9457) with two members of our own, `reason` and
`request_id`.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from graftline.serving.image_check import UnusableImage

CONTENT_TYPE = "application/problem+json"
_OF_IMAGES = {"too-many-bytes": 413, "not-an-image": 415, "unsupported-format": 415}


class Refusal(Exception):
    """A request is not answered.

    Attributes:
        status: of HTTP.
        reason: one of a few short names; counted, logged, told.
        detail: in words; tells nothing of the inside and nothing of a token.
        headers: what goes with the answer.
    """

    def __init__(
        self, status: int, reason: str, detail: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = headers or {}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was refused."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str
    request_id: str


def problem(refusal: Refusal, request_id: str) -> bytes:
    """The body that goes with a refusal."""
    return msgspec.json.encode(
        Problem(
            title=HTTPStatus(refusal.status).phrase,
            status=refusal.status,
            detail=refusal.detail,
            reason=refusal.reason,
            request_id=request_id,
        )
    )


def of_image(error: UnusableImage) -> Refusal:
    """The refusal of an image that cannot be used."""
    return Refusal(_OF_IMAGES.get(error.reason, 422), error.reason, error.detail)


def malformed(detail: str) -> Refusal:
    """The refusal of a request that is not as the interface wants it."""
    return Refusal(400, "bad-request", detail)


def busy(detail: str) -> Refusal:
    """The refusal of a request for which there is no room; it may be sent again soon."""
    return Refusal(503, "overload", detail, {"Retry-After": "1"})
