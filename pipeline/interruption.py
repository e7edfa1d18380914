"""A polite kill, as systems send it before they kill for good, is an interruption by a person."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def stop_on_signal() -> Iterator[None]:
    """Treats SIGTERM as Ctrl-C, so that what is to be written at the end is written in both cases.

    Raises:
        KeyboardInterrupt: the signal came.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
