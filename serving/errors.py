"""The two ways in which Graftline says no: the user's mistake and a gate's refusal.

Everything else that is raised is a defect of the program and ends as a traceback in the log.
"""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """A mistake that the user can mend: one paragraph with what is wrong, where, what to do.

    The command line prints the message and exits with code 2.
    """


class Rejected(UserError):
    """A drop that cannot be taken in as it is, however often one tries.

    With `--json` the command's answer says `"rejected": true`.
    """


class Refused(Exception):
    """A gate said no: the message is the verdict in words. The command line exits with code 3.

    Attributes:
        verdict: the verdict as plain data, where there is one; part of the answer with `--json`.
    """

    def __init__(self, message: str, verdict: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict
