"""What a gate decided: a table of checks, as data, as JSON and in words.

The data gate, the model gate and the serving probe write one verdict each, on refusals too; the
command line, the model card and the manifest of a version read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from rich.table import Table

OVERALL = "overall"
# What people call them.
GATES = {"data": "data gate", "model": "model gate", "probe": "serving probe"}

_OUTCOMES = {True: "passed", False: "[red]no[/red]", None: "[yellow]undecided[/yellow]"}
_MANY = 40


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
        final: where it did not pass, nobody can let it through: there is no model to be had of it.
    """

    metric: str
    slice: str
    candidate: float | None = None
    baseline: float | None = None
    threshold: float | None = None
    passed: bool | None
    note: str = ""
    final: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The decision of one gate.

    Attributes:
        gate: `data`, `model` or `probe`.
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

    @property
    def final(self) -> bool:
        """Whether a check said no that no person can overrule."""
        return any(check.final for check in self.failed)

    @property
    def undecided(self) -> tuple[Check, ...]:
        """The checks that could not be decided."""
        return tuple(check for check in self.checks if check.passed is None)

    def in_words(self) -> str:
        """What was decided, with a line for every check that said no or could not be decided."""
        count = len(self.checks)
        if self.overridden:
            outcome = f"{len(self.failed)} of {count} checks failed; let through: {self.overridden}"
        elif not self.passed:
            outcome = f"refused, {len(self.failed)} of {count} checks failed"
        elif self.undecided:
            outcome = f"passed, {len(self.undecided)} of {count} checks could not be decided"
        else:
            outcome = f"passed all {count} checks"
        lines = [f"  no  {check.note}" for check in self.failed]
        lines += [f"  ?   {check.note}" for check in self.undecided]
        return "\n".join([f"The {GATES[self.gate]}: {outcome}.", *lines])

    def table(self) -> Table:
        """Every check as a table for the screen; checks per class that passed only while few."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=GATES[self.gate], title_justify="left")
        for heading in ("metric", "of"):
            table.add_column(heading)
        for heading in ("found", "before", "bound"):
            table.add_column(heading, justify="right")
        table.add_column("")
        many = len(self.checks) > _MANY
        shown = [c for c in self.checks if not (many and c.passed and c.slice != OVERALL)]
        for check in shown:
            numbers = (check.candidate, check.baseline, check.threshold)
            table.add_row(
                check.metric,
                escape(check.slice),
                *("" if number is None else _shown(number) for number in numbers),
                _OUTCOMES[check.passed],
            )
        if len(shown) < len(self.checks):
            table.caption = f"{len(self.checks) - len(shown)} further checks passed"
        return table

    def write(self, path: Path) -> None:
        """Writes the verdict as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))

    @staticmethod
    def read(path: Path) -> Verdict:
        """Reads a verdict that `write` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=Verdict)


def _shown(number: float) -> str:
    return f"{number:.3f}" if number == 0 or abs(number) >= 0.001 else f"{number:.0e}"
