"""The publisher: an executor for TFX's Pusher that publishes into a Graftline base path.

A blessed model becomes the next version in one rename, with its manifest and model card. The
output is a standard PushedModel; it holds a pointer to the version rather than a second copy of
the model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import msgspec
from tfx import types
from tfx.components.pusher import executor
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from graftline.components.verdict import Verdict
from graftline.serving import manifest
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.manifest import Manifest, Measure

VERDICT = "model_gate.json"
POINTER = "pushed.json"
_PACKAGES = ("tensorflow", "tf-keras", "tfx", "numpy")


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """What the pipeline tells the publisher in `custom_config`.

    Attributes:
        model: the model's name.
        spans: number and version of every span that it was trained on.
        config: the configuration of the run.
        code_revision: revision of the code.
        run_id: the run.
        images: number of images per split, where known.
    """

    model: str
    spans: tuple[tuple[int, int], ...]
    config: dict[str, Any]
    code_revision: str
    run_id: str
    images: dict[str, int] = {}


class Executor(executor.Executor):
    """Publishes a blessed model; a refused one is marked as not pushed."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Publishes `model` when `model_blessing` and `infra_blessing` allow it.

        Args:
            input_dict: as for TFX's Pusher. Where the folder of `model_blessing` holds a verdict,
                it goes into the manifest.
            output_dict: `pushed_model`.
            exec_properties: `push_destination`, whose base directory is `<base>/<model>`, and
                `custom_config`, a Publication as JSON.

        Raises:
            UserError: the base path cannot be written.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(
            output_dict[standard_component_specs.PUSHED_MODEL_KEY]
        )
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        base_path = BasePath(_destination(exec_properties))
        publication = msgspec.json.decode(
            exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY], type=Publication
        )
        saved_model = Path(self.GetModelPath(input_dict))
        version = base_path.publish(saved_model, _describe(publication, input_dict, saved_model))
        destination = str(base_path.root / str(version))
        pointer = Path(pushed.uri) / POINTER
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_bytes(
            msgspec.json.encode({"pushed_destination": destination, "pushed_version": version})
        )
        self._MarkPushed(pushed, pushed_destination=destination, pushed_version=str(version))


def _destination(exec_properties: dict[str, Any]) -> Path:
    push_destination = pusher_pb2.PushDestination()
    proto_utils.json_to_proto(
        exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], push_destination
    )
    directory = push_destination.filesystem.base_directory
    if not directory or "://" in directory:
        raise UserError(
            f"The base path must be a folder, found {directory!r}. Set paths.serving to one; "
            "object stores cannot be published to yet."
        )
    return Path(directory)


def _describe(
    publication: Publication, input_dict: dict[str, list[types.Artifact]], saved_model: Path
) -> Manifest:
    inputs = {
        name: artifact_utils.get_single_instance(artifacts)
        for name, artifacts in input_dict.items()
        if artifacts
    }
    verdict = _verdict(inputs.get(standard_component_specs.MODEL_BLESSING_KEY))
    labels = saved_model / "assets.extra" / "labels.txt"
    return Manifest(
        model=publication.model,
        model_id=_model_id(inputs, saved_model),
        classes=tuple(labels.read_text("utf-8").rstrip("\n").split("\n"))
        if labels.exists()
        else (),
        measures=tuple(
            msgspec.convert(check, Measure, from_attributes=True) for check in verdict.checks
        ),
        overridden=verdict.overridden,
        spans=publication.spans,
        images=publication.images,
        configuration=publication.config,
        code_revision=publication.code_revision,
        run_id=publication.run_id,
        lineage={name: f"artifact {a.id}, {a.uri}" for name, a in inputs.items()},
        packages={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    )


def _model_id(inputs: dict[str, types.Artifact], saved_model: Path) -> str:
    """Identifies one trained model; a publisher that died and is run again finds the same.

    The address alone is the same in the containers of two projects, and the content alone in two
    trainings that happen to agree. Both are the same where a lost metadata store counts from 1
    again: then the time at which the model was recorded differs.
    """
    model = inputs.get(standard_component_specs.MODEL_KEY) or inputs["infra_blessing"]
    recorded = model.mlmd_artifact.create_time_since_epoch
    content = manifest.digest(manifest.hash_files(saved_model))
    return hashlib.sha256(f"{model.uri}\n{recorded}\n{content}".encode()).hexdigest()


def _verdict(blessing: types.Artifact | None) -> Verdict:
    if blessing is not None and (path := Path(blessing.uri) / VERDICT).exists():
        return Verdict.read(path)
    return Verdict(gate="model", passed=True, checks=())
