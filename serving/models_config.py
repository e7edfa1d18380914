"""The servers' `models.config`: which versions of a model they load, and which labels these carry.

    <base>/models.config    a ModelServerConfig in text format, one entry per model

A server that was started with `--model_config_file` and `--model_config_file_poll_wait_seconds`
follows it. Several projects may share a base folder, and so the file: each owns its model's entry,
and leaves the others as they are. Without an entry a server is taken to watch the base path, and to
serve the highest version.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from graftline.serving.errors import UserError
from graftline.serving.file_system import explained, locked, sync, write
from graftline.serving.traffic import CANARY, STABLE

FILE_NAME = "models.config"
_PLATFORM = "tensorflow"
_LOCK_TIMEOUT_SECONDS = 30.0


class Choice(msgspec.Struct, frozen=True):
    """What servers are told about one model.

    Attributes:
        versions: the versions to load; empty: the highest that is there.
        labels: version by label.
    """

    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = {}

    @property
    def held(self) -> int | None:
        """The version that answers, whatever is published later; None: the highest one does."""
        if STABLE in self.labels:
            return self.labels[STABLE]
        # Without a label a server answers with the highest one that is loaded.
        return max((v for v in self.versions if v != self.canary), default=None)

    @property
    def canary(self) -> int | None:
        """The version that carries the label `canary`."""
        return self.labels.get(CANARY)

    @property
    def needed(self) -> set[int]:
        """The versions that must stay where they are."""
        return {*self.versions, *self.labels.values()}

    def with_labels(self, **versions: int | None) -> Choice:
        """The same with labels moved, or taken away where None is given; all else stays loaded."""
        labels = {**self.labels, **versions}
        return msgspec.structs.replace(
            self, labels={name: v for name, v in labels.items() if v is not None}
        )

    def loading(self, *versions: int) -> Choice:
        """The same with exactly these versions, and those that carry a label."""
        wanted = {*versions, *self.labels.values()}
        return msgspec.structs.replace(self, versions=tuple(sorted(wanted)))


class ModelsConfig:
    """The entry of one model in the file of its base folder."""

    def __init__(self, root: Path, mounted_at: str = "") -> None:
        """Takes `<base>/<model>`.

        Args:
            root: the model's base path here.
            mounted_at: where servers see `<base>`; empty: where it is.
        """
        self.path = root.parent / FILE_NAME
        self._model = root.name
        self._base_path = f"{mounted_at.rstrip('/')}/{root.name}" if mounted_at else str(root)
        self._private = root.parent / ".graftline"

    def read(self) -> Choice | None:
        """What servers are told about the model; None: nothing, there is no entry.

        Raises:
            UserError: the file does not parse, or asks for what no command here writes.
        """
        entry = next((e for e in self._entries(self._parse()) if e.name == self._model), None)
        if entry is None:
            return None
        policy = entry.model_version_policy
        kind = policy.WhichOneof("policy_choice")
        if kind == "all" or (kind == "latest" and policy.latest.num_versions > 1):
            raise UserError(
                f"The entry of {self._model} in {self.path} has the version policy `{kind}`, with "
                "which several versions serve at once. `graftline serve-config` replaces the entry "
                "by one that follows the newest version."
            )
        versions = tuple(sorted(policy.specific.versions)) if kind == "specific" else ()
        return Choice(versions, dict(sorted(entry.version_labels.items())))

    def replace(self, choice: Choice) -> None:
        """Writes the model's entry, in one rename; entries of other models stay as they are.

        Raises:
            UserError: the file does not parse, or cannot be written; then the old one stands.
        """
        from google.protobuf import text_format

        with explained(f"Cannot write {self.path}"), self._lock():
            config = self._parse()
            for other in (e for e in self._entries(config) if e.name == self._model):
                entry = other
                break
            else:
                entry = config.model_config_list.config.add(name=self._model)
            entry.base_path = self._base_path
            entry.model_platform = _PLATFORM
            entry.ClearField("model_version_policy")
            entry.ClearField("version_labels")
            if choice.versions:
                entry.model_version_policy.specific.versions.extend(choice.versions)
            else:
                entry.model_version_policy.latest.num_versions = 1
            for label, number in sorted(choice.labels.items()):
                entry.version_labels[label] = number
            draft = self._private / f"{FILE_NAME}-{uuid.uuid4().hex}"
            try:
                write(draft, text_format.MessageToString(config).encode())
                draft.replace(self.path)
            finally:
                draft.unlink(missing_ok=True)
            sync(self.path.parent)

    def _lock(self) -> Any:
        return locked(self._private / "models.lock", _LOCK_TIMEOUT_SECONDS)

    @staticmethod
    def _entries(config: Any) -> Any:
        return config.model_config_list.config

    def _parse(self) -> Any:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            text = b""
        # A tenth of a second, which commands on a base path without the file do not pay.
        from google.protobuf import text_format
        from tensorflow_serving.config import model_server_config_pb2

        config = model_server_config_pb2.ModelServerConfig()
        try:
            text_format.Parse(text.decode(), config)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.path} does not parse ({error}), so servers go on with what they read "
                "before, and nothing was changed. Mend it, or move it away and run `graftline "
                "serve-config`."
            ) from error
        if config.WhichOneof("config") == "custom_model_config":
            raise UserError(
                f"{self.path} holds a custom_model_config, which only a server of your own takes. "
                "Move it away and run `graftline serve-config`."
            )
        names = [entry.name for entry in config.model_config_list.config]
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(
                f"{self.path} lists the model {twice} more than once, which servers refuse; "
                "nothing was changed. Remove one of the entries."
            )
        return config


def held(root: Path) -> int | None:
    """The version that `models.config` holds the servers of `<base>/<model>` at, if any.

    Raises:
        UserError: as `ModelsConfig.read`.
    """
    return told(root).held


def needed(root: Path) -> set[int]:
    """The versions of `<base>/<model>` that `models.config` names.

    Raises:
        UserError: as `ModelsConfig.read`.
    """
    return told(root).needed


def told(root: Path) -> Choice:
    """What servers of `<base>/<model>` are told; where nothing, that they follow the newest."""
    config = ModelsConfig(root)
    return (config.read() if config.path.exists() else None) or Choice()
