"""Progress of long work inside a node, shown by whoever runs the pipeline.

A node runs with its output redirected to the log file; what a person should see on screen while it
works goes through `report`. Without a listener it is written to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

_listener: Callable[[str], None] | None = None


def listen(listener: Callable[[str], None] | None) -> None:
    """Sets who is told of progress in this process; None sends it to the log again."""
    global _listener
    _listener = listener


def report(text: str) -> None:
    """Tells the listener one short line, e.g. `fine-tuning 2/5  accuracy 0.912`."""
    if _listener is None:
        logging.getLogger("graftline").info(text)
    else:
        _listener(text)
