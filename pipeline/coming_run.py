"""How many images a run would deal with, on a drop that is still to come."""

from __future__ import annotations

from collections.abc import Sequence

from graftline.components.ingest.spans import newest_versions
from graftline.pipeline.past_runs import images_in
from graftline.pipeline.project import Project
from graftline.serving.base_path import BasePath

# Those of which features are computed.
TRAINED = ("train", "eval")


class ComingRun:
    """A run on the drop after those that are there.

    Attributes:
        images: of the drop.
    """

    def __init__(self, project: Project, images: int) -> None:
        """Takes the project as it is configured, and how many images the drop will have."""
        self.images = images
        self._project = project

    def new(self, splits: Sequence[str]) -> float:
        """Images of the drop that some splits get."""
        drop = self._project.config.drop
        shares = {"eval": drop.eval_share, "test": drop.test_share}
        shares["train"] = 1 - drop.eval_share - drop.test_share
        return self.images * sum(shares[split] for split in splits)

    def window(self, splits: Sequence[str]) -> float:
        """Images of some splits in all spans that it trains on or is judged by."""
        newest = newest_versions(self._project.spans)
        last = self._project.config.window.last
        kept = newest if last is None else newest[len(newest) - min(last - 1, len(newest)) :]
        return images_in(kept, splits) + self.new(splits)

    def judged(self) -> float:
        """Test images, times the models that are evaluated."""
        in_service = BasePath(self._project.base_path).in_service()
        return (1 if in_service is None else 2) * self.window(("test",))
