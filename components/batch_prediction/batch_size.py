"""How many images a device is given at once: as many as make it faster, fewer when memory ends."""

from __future__ import annotations

# A larger batch has to be worth it, and each is tried more than once: the first of a size sets up.
_GAIN = 1.1
_TRIES = 3


class BatchSize:
    """The size of the next batch, found while the work goes on.

    Attributes:
        size: images in the next batch.
    """

    def __init__(self, first: int, most: int) -> None:
        """Takes where to begin and where to end; the same number twice for a fixed size."""
        self.size = first
        self._most = most
        self._best = 0.0
        self._rates: list[float] = []

    def note(self, images: int, seconds: float) -> None:
        """Learns how long a batch took."""
        if images != self.size or self.size >= self._most:
            return
        self._rates.append(images / seconds)
        if len(self._rates) < _TRIES:
            return
        rate = max(self._rates)
        self._rates = []
        if rate > _GAIN * self._best:
            self._best = rate
            self.size = min(2 * self.size, self._most)
        else:
            self.size = self._most = self.size // 2

    def shrink(self, images: int) -> bool:
        """Goes down to half of a batch that did not fit, for good; False where it is there."""
        if self.size <= images // 2:
            return False
        self.size = self._most = images // 2
        return True
