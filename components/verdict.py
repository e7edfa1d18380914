"""What a gate decided: a table of checks, as data, as JSON and in words.

The data gate and the model gate write one verdict each, on refusals too; the command line, the
model card and the manifest of a version read it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a verdict.

    Attributes:
        metric: what was measured, e.g. `accuracy` or `anomaly`.
        slice: of what: `overall`, a class name, or a feature name.
        candidate: the value found, None where there is none.
        baseline: the value of the version in service or of the span before.
        threshold: the bound that was applied.
        passed: True, False, or None where it cannot be decided (too few images).
        note: in words, what was found; the reason where it did not pass.
    """

    metric: str
    slice: str
    candidate: float | None = None
    baseline: float | None = None
    threshold: float | None = None
    passed: bool | None
    note: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The decision of one gate.

    Attributes:
        gate: `data` or `model`.
        passed: whether the run goes on (also True where it was overridden).
        overridden: the recorded reason of a person who let it through, else empty.
        checks: every check with its outcome.
    """

    gate: str
    passed: bool
    overridden: str = ""
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that said no."""
        return tuple(check for check in self.checks if check.passed is False)

    def in_words(self) -> str:
        """One sentence per failed check, or that all passed."""
        if not self.failed:
            return f"The {self.gate} gate passed all {len(self.checks)} checks."
        reasons = "\n".join(f"  - {check.note}" for check in self.failed)
        outcome = (
            f"let through by a person: {self.overridden}"
            if self.passed
            else f"{len(self.failed)} of {len(self.checks)} checks failed"
        )
        return f"The {self.gate} gate: {outcome}.\n{reasons}"

    def write(self, path: Path) -> None:
        """Writes the verdict as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))

    @staticmethod
    def read(path: Path) -> Verdict:
        """Reads a verdict that `write` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
