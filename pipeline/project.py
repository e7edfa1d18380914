"""A project folder: where its configuration, spans, runs and versions are."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftline.components.trainer.backbones.registry import WEIGHTS
from graftline.pipeline.config import FILE_NAME, Config, load_config
from graftline.pipeline.tuned import read_tuned
from graftline.serving.errors import UserError


@dataclass(frozen=True)
class Project:
    """A project folder and its configuration; all paths are absolute.

    Attributes:
        root: the folder that holds `graftline.yaml`.
        config: the configuration, overrides applied.
        tuned: what of it was found by tuning, by key.
    """

    root: Path
    config: Config
    tuned: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def find(directory: Path | None, overrides: Sequence[str] = ()) -> Project:
        """Opens the project in `directory`, or in the current folder or the nearest parent.

        Raises:
            UserError: there is no project, or its configuration is refused.
        """
        start = (directory or Path()).resolve()
        candidates = [start] if directory else [start, *start.parents]
        for candidate in candidates:
            if (candidate / FILE_NAME).is_file():
                tuned = read_tuned(candidate)
                config = load_config(candidate / FILE_NAME, overrides, tuned)
                return Project(candidate, config, tuned)
        raise UserError(
            f"There is no {FILE_NAME} in {start}{'' if directory else ' or above it'}. Make a "
            "project with `graftline init DIR --images FOLDER`, or name one with --project DIR."
        )

    def _path(self, configured: str) -> Path:
        return (self.root / Path(configured).expanduser()).resolve()

    @functools.cached_property
    def schema(self) -> Path:
        """The curated schema."""
        return self._path(self.config.paths.schema)

    @functools.cached_property
    def drops(self) -> Path:
        """Where drops arrive."""
        return self._path(self.config.paths.drops)

    @functools.cached_property
    def spans(self) -> Path:
        """Folder of the spans."""
        return self._path(self.config.paths.spans)

    @functools.cached_property
    def quarantine(self) -> Path:
        """Folder of what the drops could not use."""
        return self._path(self.config.paths.quarantine)

    @functools.cached_property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self._path(self.config.paths.runs)

    @functools.cached_property
    def artifacts(self) -> Path:
        """Root of the pipeline's artifacts."""
        return self._path(self.config.paths.artifacts)

    @functools.cached_property
    def metadata(self) -> Path:
        """The metadata database."""
        return self.artifacts / "metadata.sqlite"

    @functools.cached_property
    def features(self) -> Path:
        """What frozen networks made of the images, kept from run to run."""
        return self.artifacts / "features"

    @functools.cached_property
    def checkpoints(self) -> Path:
        """How far a training is that was cut off."""
        return self.artifacts / "checkpoints"

    @functools.cached_property
    def last_good(self) -> Path:
        """The model that a training has left that diverged."""
        return self.artifacts / "last_good"

    @functools.cached_property
    def cluster(self) -> Path:
        """Where other machines learn of a training."""
        return self.artifacts / "cluster"

    @functools.cached_property
    def trials(self) -> Path:
        """Trials of a search that was cut off."""
        return self.artifacts / "trials"

    @functools.cached_property
    def base_path(self) -> Path:
        """The model's base path: its children are the versions."""
        return self._path(self.config.paths.serving) / self.config.model.name

    @functools.cached_property
    def weights_file(self) -> Path | None:
        """The file that the backbone's weights are read from; None where they go by a name."""
        configured = self.config.trainer.weights
        return None if configured in WEIGHTS else self._path(configured)

    @functools.cached_property
    def weights_cache(self) -> Path:
        """Folder of downloaded weights."""
        return self._path(self.config.paths.weights)
