"""How long a stage takes for so many images: a fixed part and a part per image, from past runs.

Both are fitted to what was measured, by least squares of the relative errors, neither below zero.
Where all measurements are of about one size the fixed part cannot be told from the other: it is
then taken from a table, as far as the measurement allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

# Seconds that a stage takes for hardly any images: on two cores without a GPU, MobileNetV2 0.35.
USUAL_FIXED = {
    "drop": 0.3,
    "ImportExampleGen": 0.2,
    "StatisticsGen": 6.0,
    "Transform": 1.3,
    "Evaluator": 4.2,
    "ModelGate": 0.2,
    "ServingProbe": 7.5,
    "loading": 20.0,
    "features": 6.5,
    "training": 4.0,
}
# Errors that no past run shows: the machine is shared, disks are slower at times.
_LEAST_SPREAD = 0.1
_UNKNOWN_SPREAD = 0.5
_PER_DOUBLING = 0.05
# Sizes that are no further apart tell nothing of what grows with them.
_ONE_SIZE = 1.5


class Estimate(msgspec.Struct, frozen=True):
    """A number and how far it may be off.

    Attributes:
        value: e.g. in seconds.
        error: of the same unit, to either side.
    """

    value: float
    error: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        """The sum of two whose errors have nothing to do with each other."""
        return Estimate(self.value + other.value, math.hypot(self.error, other.error))

    @property
    def low(self) -> float:
        """As little as it may be."""
        return max(0.0, self.value - self.error)

    @property
    def high(self) -> float:
        """As much as it may be."""
        return self.value + self.error


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds as a function of an amount.

    Attributes:
        fixed: seconds whatever the amount.
        slope: seconds for each one more.
        spread: relative error to expect within what was measured.
        largest: largest amount that was measured.
        guessed: whether the fixed part comes from the table.
    """

    fixed: float
    slope: float
    spread: float
    largest: float
    guessed: bool = False

    def at(self, amount: float, factor: float = 1.0) -> Estimate:
        """For an amount, of which each costs `factor` times what was measured."""
        value = self.fixed + self.slope * amount * factor
        beyond = math.log2(amount / self.largest) if amount > self.largest > 0 else 0.0
        return Estimate(value, value * (self.spread + _PER_DOUBLING * beyond))


def fit(points: Sequence[tuple[float, float]], usual: str = "") -> Line:
    """The line through what was measured.

    Args:
        points: amount and seconds of each run; at least one.
        usual: key of `USUAL_FIXED`; empty: the fixed part is 0 where it cannot be told.
    """
    largest = max(amount for amount, _ in points)
    if largest <= _ONE_SIZE * min(amount for amount, _ in points):
        mean = sum(seconds for _, seconds in points) / len(points)
        amount = sum(amount for amount, _ in points) / len(points)
        if not amount:
            return Line(fixed=mean, slope=0.0, spread=_UNKNOWN_SPREAD, largest=0.0)
        fixed = min(USUAL_FIXED.get(usual, 0.0), mean)
        return Line(
            fixed=fixed,
            slope=(mean - fixed) / amount,
            spread=_UNKNOWN_SPREAD,
            largest=largest,
            guessed=True,
        )
    fixed, slope = _least_squares(points)
    errors = [(fixed + slope * x - y) / y for x, y in points if y > 0]
    # As many degrees of freedom as points beyond the two that make a line.
    spread = math.sqrt(sum(e * e for e in errors) / max(1, len(points) - 2))
    return Line(
        fixed=fixed,
        slope=slope,
        spread=max(_LEAST_SPREAD, spread) if len(points) > 2 else 2 * _LEAST_SPREAD,
        largest=largest,
    )


def fit_memory(points: Sequence[tuple[float, float]]) -> Line:
    """The same of memory, which sizes that hardly differ do not tell to grow."""
    line = fit(points)
    return msgspec.structs.replace(line, slope=0.0, fixed=0.0) if line.guessed else line


def _least_squares(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fixed part and slope, neither negative, with the least sum of squared relative errors."""
    weights = [1 / max(y, 1e-3) ** 2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    across = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    along = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = across / along
    fixed = mean_y - slope * mean_x
    if slope < 0:
        return mean_y, 0.0
    if fixed < 0:
        squares = sum(w * x * x for w, (x, _) in zip(weights, points, strict=True))
        products = sum(w * x * y for w, (x, y) in zip(weights, points, strict=True))
        return 0.0, products / squares
    return fixed, slope
