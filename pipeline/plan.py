"""What a run decides at its start: span, window, baseline, overrides.

The plan is made once, at the edge, saved beside the run's configuration and compiled into the
parameters of the nodes, so that a resumed run, and every node of it, works with the same decisions
even when a newer drop or version has appeared meanwhile.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

FILE_NAME = "plan.json"


class SpanVersion(msgspec.Struct, frozen=True, order=True):
    """One version of one span; ordered by number."""

    span: int
    version: int

    def __str__(self) -> str:
        return f"span {self.span}" + (f" version {self.version}" if self.version > 1 else "")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The decisions of one run.

    Attributes:
        run_id: name of the run and of its folder.
        target: the span that the run ingests, checks and counts its window back from.
        window: every span that is trained on, the target included, in ascending order.
        previous: the span that the target's distribution is compared with, if there is one.
        baseline: the version in service when the run began, if there was one.
        baseline_uri: folder that keeps its files while the run needs them, else empty.
        start_from: the same of the version whose weights training starts from, else empty. A model
            that is judged again, beside another baseline, was still trained from this one.
        accept_anomalies: the reason why a person lets the target pass the data gate, else empty.
        bless: the reason why a person lets the candidate pass the model gate, else empty.
        force: a token that keeps nodes from being taken from the cache, else empty.
    """

    run_id: str
    target: SpanVersion
    window: tuple[SpanVersion, ...]
    previous: SpanVersion | None = None
    baseline: int | None = None
    baseline_uri: str = ""
    start_from: str = ""
    accept_anomalies: str = ""
    bless: str = ""
    force: str = ""

    def write(self, folder: Path) -> None:
        """Writes `plan.json` into the run's folder."""
        content = msgspec.json.format(msgspec.json.encode(self), indent=2)
        (folder / FILE_NAME).write_bytes(content)

    @staticmethod
    def read(folder: Path) -> Plan:
        """Reads `plan.json` from a run's folder."""
        return msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=Plan)
