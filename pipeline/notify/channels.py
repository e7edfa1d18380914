"""The ways to tell people: HTTP POST, e-mail, a command. Each sends one notice, once, or raises.

What is raised is shown and logged, so it never holds an address that may be a secret.
"""

from __future__ import annotations

import contextlib
import email.message
import email.utils
import hashlib
import hmac
import os
import signal
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from graftline.pipeline.notify.config import EmailConfig, NotifyConfig
from graftline.pipeline.notify.notice import Notice

# Sends a notice within so many seconds.
Channel = Callable[[Notice, float], None]

_LAST_OUTPUT = 500
# Linux starts no process with a variable of 128 KiB; a letter may take four bytes.
_LONGEST_VARIABLE = 30_000
_BUSY = 429


class NotSentError(Exception):
    """A channel did not take the notice; in words, without secrets.

    Attributes:
        temporary: whether it may take it in a moment.
    """

    def __init__(self, message: str, *, temporary: bool) -> None:
        super().__init__(message)
        self.temporary = temporary


def channels(config: NotifyConfig, folder: Path) -> Mapping[str, Channel]:
    """The channels that are configured, by name.

    Args:
        config: the section `notify`.
        folder: where the command runs.
    """
    found: dict[str, Channel] = {}
    url = config.webhook.url or os.environ.get("GRAFTLINE_WEBHOOK_URL", "")
    if url:
        found["webhook"] = lambda notice, seconds: _post(url, notice, seconds)
    if config.email.server:
        found["email"] = lambda notice, seconds: _mail(config.email, notice, seconds)
    if config.command:
        found["command"] = lambda notice, seconds: _execute(config.command, folder, notice, seconds)
    return found


def _post(url: str, notice: Notice, seconds: float) -> None:
    import requests

    body = notice.as_json()
    headers = {"Content-Type": "application/json", "User-Agent": "graftline"}
    secret = os.environ.get("GRAFTLINE_WEBHOOK_SECRET", "")
    if secret:
        digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers["X-Graftline-Signature"] = f"sha256={digest}"
    # The path of a chat service's address is its password.
    host = urlsplit(url).hostname
    try:
        # After a redirect the notice would go on as a GET without its body.
        with requests.post(
            url, data=body, headers=headers, timeout=seconds, allow_redirects=False, stream=True
        ) as answer:
            code = answer.status_code
    except (requests.ConnectionError, requests.Timeout) as error:
        certificate = isinstance(error, requests.exceptions.SSLError)
        raise NotSentError(
            f"{host} was not reached ({'TLS: ' if certificate else ''}{type(error).__name__})",
            temporary=not certificate,
        ) from None
    except (requests.RequestException, ValueError) as error:
        raise NotSentError(
            f"its address cannot be used ({type(error).__name__})", temporary=False
        ) from None
    if not 200 <= code < 300:
        raise NotSentError(f"{host} answered {code}", temporary=code >= 500 or code == _BUSY)


def _mail(config: EmailConfig, notice: Notice, seconds: float) -> None:
    message = email.message.EmailMessage()
    message["Subject"] = " ".join(notice.title.split())
    message["From"] = config.sender
    message["To"] = ", ".join(config.recipients)
    message["Date"] = email.utils.localtime()
    message["Message-ID"] = email.utils.make_msgid()
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers, please
    message.set_content(notice.in_words())
    where = f"{config.server}:{config.port}"
    try:
        with _connected(config, seconds) as server:
            if config.user:
                server.login(config.user, os.environ.get("GRAFTLINE_SMTP_PASSWORD", ""))
            server.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise NotSentError(
            f"{where} refuses {', '.join(error.recipients)}",
            temporary=all(400 <= code < 500 for code in codes),
        ) from None
    except smtplib.SMTPResponseException as error:
        said = error.smtp_error
        if isinstance(said, bytes):
            said = said.decode(errors="replace")
        raise NotSentError(
            f"{where} answered {error.smtp_code} {said}", temporary=400 <= error.smtp_code < 500
        ) from None
    except ssl.SSLError as error:
        raise NotSentError(f"{where}, TLS: {error.reason or error}", temporary=False) from None
    except smtplib.SMTPNotSupportedError as error:
        raise NotSentError(f"{where}: {error}", temporary=False) from None
    except (OSError, smtplib.SMTPException) as error:
        raise NotSentError(f"{where} was not reached: {error}", temporary=True) from None


@contextlib.contextmanager
def _connected(config: EmailConfig, seconds: float):  # type: ignore[no-untyped-def]
    context = ssl.create_default_context()
    if config.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            config.server, config.port, timeout=seconds, context=context
        )
    else:
        server = smtplib.SMTP(config.server, config.port, timeout=seconds)
    with server:
        if config.security == "starttls":
            server.starttls(context=context)
        yield server


def _execute(command: tuple[str, ...], folder: Path, notice: Notice, seconds: float) -> None:
    told = {
        "GRAFTLINE_EVENT": notice.event,
        "GRAFTLINE_TITLE": notice.title,
        "GRAFTLINE_TEXT": notice.in_words()[:_LONGEST_VARIABLE],
    }
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **told},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise NotSentError(
            f"{command[0]} cannot be run: {error.strerror}", temporary=False
        ) from None
    try:
        output, _ = process.communicate(notice.as_json(), timeout=seconds)
    except subprocess.TimeoutExpired:
        # With whatever it has started in turn.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise NotSentError(
            f"{command[0]} had not ended after {seconds:.0f} s and was killed", temporary=False
        ) from None
    if process.returncode:
        said = output.decode(errors="replace").strip()[-_LAST_OUTPUT:]
        raise NotSentError(
            f"{command[0]} ended with exit code {process.returncode}: {said}", temporary=False
        )
