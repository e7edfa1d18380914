"""What a user can set about being told: the section `notify`.

Secrets come from the environment: GRAFTLINE_WEBHOOK_SECRET, GRAFTLINE_SMTP_PASSWORD, and
GRAFTLINE_WEBHOOK_URL in place of `webhook.url` where the address itself is one.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Event = Literal["published", "refused", "failed", "rejected"]
EVENTS: tuple[Event, ...] = ("published", "refused", "failed", "rejected")

_Address = Annotated[str, Meta(pattern=r"^[^@\s<>,]+@[^@\s<>,]+$")]


class WebhookConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A notice as JSON by HTTP POST; what chat services show stands under `text`."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^(https?://\S+)?$",
            description="Address. Empty: the environment variable GRAFTLINE_WEBHOOK_URL, and none "
            "where that is unset. With GRAFTLINE_WEBHOOK_SECRET the header X-Graftline-Signature "
            "signs the body.",
        ),
    ] = ""


class EmailConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A notice by e-mail."""

    recipients: Annotated[tuple[_Address, ...], Meta(description="Whom to write to.")] = ()
    sender: Annotated[str, Meta(description="Address that the notice comes from.")] = ""
    server: Annotated[str, Meta(description="Host of the SMTP server; empty: no e-mail.")] = ""
    port: Annotated[int, Meta(ge=1, le=65535, description="Its port.")] = 587
    security: Annotated[
        Literal["starttls", "tls", "none"],
        Meta(description="starttls, tls from the first byte, or none."),
    ] = "starttls"
    user: Annotated[
        str,
        Meta(description="Name to log in with; the password is in GRAFTLINE_SMTP_PASSWORD."),
    ] = ""

    def __post_init__(self) -> None:
        """Refuses a server without addresses, and a password in the clear.

        Raises:
            ValueError: with what is missing.
        """
        if self.server and not (self.sender and self.recipients):
            raise ValueError("name a sender and recipients beside the server")
        if self.user and self.security == "none":
            raise ValueError(
                "with a user, security must be starttls or tls: none would show the "
                "password to the network"
            )


class NotifyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told how a run or a drop ended; `graftline notify` tries it out."""

    events: Annotated[
        tuple[Event, ...],
        Meta(
            description="What is told: published; refused, by a gate; failed; rejected, of a drop "
            "that cannot be taken in."
        ),
    ] = EVENTS
    deadline_seconds: Annotated[
        float,
        Meta(gt=0, le=600, description="Longest that telling may delay a run, retries included."),
    ] = 30.0
    webhook: WebhookConfig = WebhookConfig()
    email: EmailConfig = EmailConfig()
    command: Annotated[
        tuple[str, ...],
        Meta(
            description="Program with arguments, run in the project's folder: the notice as JSON "
            "on its input, and in GRAFTLINE_EVENT, GRAFTLINE_TITLE and GRAFTLINE_TEXT."
        ),
    ] = ()
