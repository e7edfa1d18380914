"""Delivers a notice through every configured channel, with retries, within one deadline.

Nothing here raises, and nothing takes longer than the deadline: whether people could be told must
never decide how a run ends. Channels work side by side in threads that the process does not wait
for; one that hangs takes nothing from the others.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import tenacity

from graftline.pipeline.notify.channels import Channel, NotSentError, channels
from graftline.pipeline.notify.config import NotifyConfig
from graftline.pipeline.notify.notice import Notice

TRIAL = "trial"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0


def deliver(config: NotifyConfig, notice: Notice, folder: Path) -> dict[str, str]:
    """Tells people.

    Args:
        config: the section `notify`.
        notice: what happened; nothing is sent of an event that `notify.events` leaves out.
        folder: where the command runs, the project's.

    Returns:
        for each channel, by name, what went wrong; an empty string where it took the notice.
    """
    if notice.event not in (*config.events, TRIAL):
        return {}
    ends = time.monotonic() + config.deadline_seconds
    outcomes: dict[str, str] = {}
    threads = []
    for name, channel in channels(config, folder).items():
        outcomes[name] = f"no answer within {config.deadline_seconds:.0f} s"
        arguments = (outcomes, name, channel, notice, ends)
        thread = threading.Thread(target=_send, args=arguments, name=f"notify-{name}", daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    return dict(outcomes)


def _send(
    outcomes: dict[str, str], name: str, channel: Channel, notice: Notice, ends: float
) -> None:
    """Sends with retries; writes the outcome."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, NotSentError) and error.temporary
        ),
        wait=tenacity.wait_exponential_jitter(_FIRST_PAUSE, _LONGEST_PAUSE, jitter=_FIRST_PAUSE),
        stop=tenacity.stop_before_delay(ends - time.monotonic()),
        reraise=True,
    )
    try:
        # A last try that is about to hang ends a little before the deadline, with its reason.
        retrying(lambda: channel(notice, max(0.1, ends - time.monotonic() - 0.2)))
        outcomes[name] = ""
    except NotSentError as error:
        outcomes[name] = str(error)
    except Exception as error:  # a defect, but not one that may end a run
        logging.getLogger("graftline").exception("notice by %s", name)
        outcomes[name] = f"{type(error).__name__}: {error}"
