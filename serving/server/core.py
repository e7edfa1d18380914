"""The models of one server: configuration, labels, watching base paths, access to what is loaded.

In: a ModelServerConfig, at the start and with every reload. The rules of what may follow what are
those of `tensorflow_serving/model_servers/server_core.cc`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorflow_serving.config import model_server_config_pb2

from graftline.serving.server.flags import Flags
from graftline.serving.server.loading import Loader
from graftline.serving.server.manager import Manager
from graftline.serving.server.metrics import Metrics
from graftline.serving.server.servable import Servable
from graftline.serving.server.sources import Source
from graftline.serving.server.states import State, States, VersionState
from graftline.serving.server.status import Code, Failure, invalid
from graftline.serving.server.text_protos import read_text

_PLATFORM = "tensorflow"
_INITIAL_LOADS_PER_CPU = 4

_log = logging.getLogger(__name__)
_Labels = Mapping[str, Mapping[str, int]]


class Core:
    """The models of one server; safe to use from any thread."""

    def __init__(self, flags: Flags, metrics: Metrics) -> None:
        """Prepares everything and loads nothing yet: `start` does.

        Raises:
            Failure: a file that the flags name is not as it should be.
        """
        self.states = States()
        self._flags = flags
        self._loader = Loader(flags, metrics)
        self._manager = Manager(
            self._loader.load,
            self.states,
            load_threads=_INITIAL_LOADS_PER_CPU * len(os.sched_getaffinity(0)),
            unload_threads=max(1, flags.num_unload_threads),
            retries=flags.max_num_load_retries,
            retry_interval=flags.load_retry_interval_micros / 1e6,
        )
        self._reloading = threading.Lock()
        self._looking = threading.Lock()
        self._config = model_server_config_pb2.ModelServerConfig()
        self._sources: dict[str, Source] = {}
        self._labels: _Labels = {}
        self._troubles: dict[str, str] = {}
        self._roots: list[Path] = []
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Loads the configured models and waits until each serves a version or cannot.

        Raises:
            Failure: the configuration is wrong, or a model cannot be served.
        """
        config = self._first_config()
        self._roots = self._allowed_roots(config)
        self._watch(self._flags.file_system_poll_wait_seconds, self._look, "base-paths")
        self.reload(config, lambda: not self._stopped.is_set())
        self._manager.set_load_threads(max(1, self._flags.num_load_threads))
        if self._flags.model_config_file:
            period = self._flags.model_config_file_poll_wait_seconds
            self._watch(period, self._reread_config, "config-file")

    def stop(self) -> None:
        """Ends waiting and watching; what is loaded stays."""
        self._stopped.set()

    def close(self, seconds: float = 30.0) -> bool:
        """Unloads everything, once no request uses it any more.

        Args:
            seconds: how long to wait for that.

        Returns:
            Whether it came to that.
        """
        self.stop()
        for thread in self._threads:
            thread.join()
        done = self._manager.close(seconds)
        if done:
            self._loader.close()
        return done

    def reload(self, config: Any, wanted: Callable[[], bool]) -> None:
        """Replaces the configuration, and waits until every new model serves or cannot.

        Args:
            config: a ModelServerConfig.
            wanted: asked from time to time; the waiting ends when it says no.

        Raises:
            Failure: it is refused, and then nothing was changed; or a new model cannot be served.
        """
        with self._reloading:
            self._check_transition(config)
            if config.WhichOneof("config") is None:
                _log.info("Taking no action for an empty configuration")
                return
            models = config.model_config_list.config
            _validate(models, self._config.model_config_list.config)
            labels = self._checked_labels(models)
            self._config = config
            since = self.states.change
            new = [model.name for model in models if model.name not in self._sources]
            with self._looking:
                removed = set(self._sources) - {model.name for model in models}
                self._sources = {model.name: self._source(model) for model in models}
                self._labels = labels
                for name in removed:
                    self._manager.aspire(name, {})
            if self._flags.file_system_poll_wait_seconds >= 0:
                self._look()
            ended = self.states.wait(new, since, wanted)
        if ended:
            raise Failure(Code.UNKNOWN, _unavailable(ended))

    def check_paths(self, config: Any) -> None:
        """Refuses a configuration from the network that names folders it may not name.

        Raises:
            Failure: one of them is under no folder that the operator allowed.
        """
        for model in config.model_config_list.config:
            path = Path(os.path.realpath(model.base_path))
            if not any(path.is_relative_to(root) for root in self._roots):
                raise Failure(
                    Code.PERMISSION_DENIED,
                    f"Model {model.name} may not be served from {model.base_path}: it is under "
                    "none of the folders that --allowed_model_roots names",
                )

    @contextlib.contextmanager
    def use(self, spec: Any) -> Iterator[tuple[int, Servable]]:
        """Holds the version that a ModelSpec names: by number, by label, or the latest.

        Raises:
            Failure: it names none, or it is not loaded.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        number = None
        if choice == "version":
            number = spec.version.value
        elif choice == "version_label":
            number = self._labels.get(spec.name, {}).get(spec.version_label)
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        with self._manager.use(spec.name, number) as held:
            yield held

    def status(self, spec: Any) -> Mapping[int, VersionState]:
        """The states of a model's versions, the highest first, or of the one it names by number.

        Raises:
            Failure: there is none. A label is not looked at.
        """
        versions = self.states.of(spec.name)
        if spec.WhichOneof("version_choice") == "version":
            number = spec.version.value
            if number not in versions:
                raise Failure(
                    Code.NOT_FOUND, f"Could not find version {number} of model {spec.name}"
                )
            return {number: versions[number]}
        if not versions:
            raise Failure(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        return versions

    def serves(self, model: str) -> bool:
        """Whether a model of this name is configured."""
        return model in self._sources

    def _first_config(self) -> Any:
        if self._flags.model_config_file:
            return read_text(
                self._flags.model_config_file, model_server_config_pb2.ModelServerConfig()
            )
        config = model_server_config_pb2.ModelServerConfig()
        config.model_config_list.config.add(
            name=self._flags.model_name,
            base_path=self._flags.model_base_path,
            model_platform=_PLATFORM,
        )
        return config

    def _allowed_roots(self, config: Any) -> list[Path]:
        """The folders that a reload call may name: given, or the parents of the first models'."""
        given = [root for root in self._flags.allowed_model_roots.split(",") if root]
        first = [model.base_path for model in config.model_config_list.config]
        roots = given or [str(Path(path).parent) for path in first]
        return [Path(os.path.realpath(root)) for root in roots]

    def _source(self, model: Any) -> Source:
        before = self._sources.get(model.name)
        policy = model.model_version_policy
        if before and before.base_path == model.base_path and before.policy == policy:
            return before
        return Source(model.name, model.base_path, policy, self._flags.prefer_tflite_model)

    def _watch(self, period: float, look: Callable[[], None], name: str) -> None:
        def repeat() -> None:
            while not self._stopped.wait(period):
                try:
                    look()
                except Exception:
                    _log.exception("Looking at the %s failed", name)

        if period > 0:
            thread = threading.Thread(target=repeat, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _look(self) -> None:
        """Tells the manager what the base paths hold now."""
        with self._looking:
            for name, source in self._sources.items():
                try:
                    self._manager.aspire(name, source.aspired())
                except Failure as trouble:
                    # What is loaded stays; other models' base paths are looked at all the same.
                    if self._troubles.get(name) != trouble.message:
                        _log.error(trouble.message)
                    self._troubles[name] = trouble.message
                else:
                    self._troubles.pop(name, None)

    def _reread_config(self) -> None:
        file = self._flags.model_config_file
        try:
            config = read_text(file, model_server_config_pb2.ModelServerConfig())
            # Not waited for: a path that is wrong here must not keep the next look from mending it.
            self.reload(config, lambda: False)
        except Failure as failure:
            if self._troubles.get(file) != failure.message:
                _log.error("Failed to reload %s: %s", file, failure)
            self._troubles[file] = failure.message
        else:
            self._troubles.pop(file, None)

    def _check_transition(self, config: Any) -> None:
        kind = config.WhichOneof("config")
        if kind == "custom_model_config":
            raise invalid("ModelServer does not yet support custom model config.")
        if self._config.WhichOneof("config") and kind != "model_config_list":
            raise Failure(
                Code.FAILED_PRECONDITION,
                "Cannot transition to requested config. It is only legal to transition from one "
                "ModelConfigList to another.",
            )

    def _checked_labels(self, models: Sequence[Any]) -> _Labels:
        """The new labels, all of which may be assigned.

        Raises:
            Failure: one of them names a version that does not serve.
        """
        for model in models:
            known = self.states.of(model.name)
            before = self._labels.get(model.name, {})
            for label, number in model.version_labels.items():
                state = known.get(number)
                available = state is not None and state.state is State.AVAILABLE
                relaxed = self._flags.allow_version_labels_for_unavailable_models
                if not available and not (relaxed and before.get(label, number) == number):
                    raise Failure(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {model.name}, "
                        "which is not currently available for inference",
                    )
        return {model.name: dict(model.version_labels) for model in models}


def _validate(models: Sequence[Any], before: Sequence[Any]) -> None:
    """The checks that need no look at the disk.

    Raises:
        Failure: a model is listed twice, has no platform, another one than before, or a path that
            cannot be served from.
    """
    platforms = {model.name: model.model_platform for model in before}
    seen: set[str] = set()
    for model in models:
        if model.name in seen:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        seen.add(model.name)
        if "://" in model.base_path:
            raise Failure(
                Code.UNIMPLEMENTED,
                f"Model {model.name} has base_path()={model.base_path}; the embedded server reads "
                "local folders only",
            )
        if not Path(model.base_path).is_absolute():
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got "
                f"base_path()={model.base_path}"
            )
        platform = model.model_platform or (_PLATFORM if model.model_type else "")
        if not platform:
            raise invalid(
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                f"ModelServerConfig::model_platform, model name is {model.name}"
            )
        if model.name in platforms and platforms[model.name] not in ("", platform):
            raise invalid(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{platforms[model.name]} and new platform requested is {platform}"
            )
        if platform != _PLATFORM:
            raise invalid(f"Model {model.name} requests unsupported platform {platform}")
        if model.HasField("logging_config"):
            _log.warning("Model %s asks for request logging, which is not done here", model.name)


def _unavailable(ended: Mapping[tuple[str, int], VersionState]) -> str:
    details = ", ".join(
        f"{{name: {model} version: {number}}}"
        + (f" due to error: {state.error}" if state.error else "")
        for (model, number), state in ended.items()
    )
    count = len({model for model, _ in ended})
    return f"{count} model(s) did not become available: {{{details}}}"
