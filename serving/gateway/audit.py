"""A line of JSON for every refusal: who, from where, why. Never an image, a key or a token.

What a refusal says in words is left out, too: it may quote what was sent.
"""

from __future__ import annotations

import datetime
import logging
import logging.handlers
import sys
from pathlib import Path

import msgspec

from graftline.serving.errors import UserError
from graftline.serving.gateway.metrics import Metrics

_FILE_BYTES = 50_000_000
_FILES = 5
_LONGEST_PATH = 200


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal.

    Attributes:
        request_id: as in the answer.
        address: from which the request came.
        caller: who it was, once that was known.
        method: of HTTP.
        path: without the query, which may hold anything.
        status: of the answer.
        reason: a short name.
    """

    request_id: str
    address: str
    caller: str | None
    method: str
    path: str
    status: int
    reason: str


class Audit:
    """Writes refusals to a file that is turned over when it is full, or to standard error."""

    def __init__(self, path: str, metrics: Metrics) -> None:
        """Opens the file.

        Args:
            path: of the file; empty for standard error.
            metrics: where a line is counted that cannot be written.

        Raises:
            UserError: it cannot be written.
        """
        try:
            handler: logging.Handler = logging.StreamHandler(sys.stderr)
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                handler = logging.handlers.RotatingFileHandler(
                    path, maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8"
                )
        except OSError as error:
            raise UserError(f"The audit log {path} cannot be written: {error.strerror}.") from error
        # A full disk is counted; it refuses nobody.
        handler.handleError = lambda record: metrics.audit_failures.inc()  # type: ignore[method-assign]
        # Not in logging's tree: what others configure there does not reach it.
        self._log = logging.Logger("graftline.gateway.audit")
        self._log.addHandler(handler)

    def refused(self, entry: Entry) -> None:
        """Writes a line."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, **msgspec.structs.asdict(entry), "path": entry.path[:_LONGEST_PATH]}
        self._log.info("%s", msgspec.json.encode(line).decode())

    def close(self) -> None:
        """Closes the file."""
        for handler in self._log.handlers:
            handler.close()
