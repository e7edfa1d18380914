"""Which versions of a model should be loaded: a look at its base path under its version policy.

As `tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc`, but for one thing:
a numeric folder without a model in it, or whose variables lack their index or a shard by name, is
not taken, so a version of which files are still to be copied, or were never copied, costs no load
attempts and no version that serves. A file that is there in part is not noticed: loading it fails.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from graftline.serving.server.status import invalid
from graftline.serving.versions import loadable, numeric_children

TFLITE_MODEL = "model.tflite"

_log = logging.getLogger(__name__)


class Source:
    """The versions under a base path; says once, not at every look, what is odd about them."""

    def __init__(self, model: str, base_path: str, policy: Any, tflite: bool = False) -> None:
        """Takes the model's name and base path.

        Args:
            model: name under which it is served.
            base_path: absolute path of the folder with the versions.
            policy: a ServableVersionPolicy message; unset is the latest one.
            tflite: whether a folder with only a TFLite model is a version.
        """
        self.model = model
        self.base_path = base_path
        self.policy = policy
        self._tflite = tflite
        self._said: set[str] = set()

    def aspired(self) -> dict[int, Path]:
        """The versions that should be loaded, by number.

        Raises:
            Failure: the base path is not there or cannot be read.
        """
        root = Path(self.base_path)
        try:
            if not root.is_dir():
                raise FileNotFoundError
            children = dict(numeric_children(root))
        except OSError as error:
            reason = error.strerror or "No such folder"
            raise invalid(
                f"Could not find base path {root} for servable {self.model} with error {reason}"
            ) from None
        odd: set[str] = set()
        versions = {}
        for number, path in children.items():
            if self._complete(path):
                versions[number] = path
            else:
                odd.add(f"Version {path} of {self.model} holds no model (yet): not taken")
        if not children:
            odd.add(
                f"No versions of servable {self.model} found under base path {root}. Did you "
                "forget to name your leaf directory as a number (eg. '/1/')?"
            )
        chosen = self._choose(versions, odd)
        for line in odd - self._said:
            _log.warning(line)
        self._said = odd
        return chosen

    def _complete(self, folder: Path) -> bool:
        return loadable(folder) or (self._tflite and (folder / TFLITE_MODEL).is_file())

    def _choose(self, versions: dict[int, Path], odd: set[str]) -> dict[int, Path]:
        choice = self.policy.WhichOneof("policy_choice")
        if choice == "all":
            return versions
        if choice == "specific":
            wanted = set(self.policy.specific.versions)
            for missing in sorted(wanted - set(versions)):
                odd.add(f"Version {missing} of servable {self.model} is not in {self.base_path}")
            if not wanted:
                odd.add(f"No specific versions of {self.model} are listed: all are unloaded")
            return {number: versions[number] for number in sorted(wanted & set(versions))}
        count = max(1, self.policy.latest.num_versions)
        return {number: versions[number] for number in sorted(versions)[-count:]}
