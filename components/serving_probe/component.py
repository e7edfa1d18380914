"""The serving probe as a node: a candidate that no server can serve as it should is not published.

In come the candidate, the model gate's blessing and the window's examples; out goes TFX's standard
InfraBlessing, which any Pusher understands, with the verdict beside it. A candidate that the model
gate refused is not tried. One that the probe refuses stops the run, so that the node is executed
anew when the run is resumed: what was too slow, or found a port taken, may not be so the next time.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec
from tfx import types
from tfx.components.util import model_utils
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import path_utils

from graftline.components.serving_probe import checks, reference
from graftline.components.serving_probe.config import ProbeConfig
from graftline.components.verdict import Verdict
from graftline.serving.errors import Refused

REPORT = "serving_probe.json"
LOG = "serving_probe.log"
# As TFX's InfraValidator marks it.
_BLESSED = "blessed"
_FILES = {True: "INFRA_BLESSED", False: "INFRA_NOT_BLESSED"}


class Executor(BaseExecutor):
    """Tries one candidate."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the verdict and the blessing.

        Args:
            input_dict: as ServingProbe's inputs.
            output_dict: `blessing`.
            exec_properties: as ServingProbe's parameters.

        Raises:
            Refused: the candidate is not served as it should be; the message is the verdict.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        if not model_utils.is_model_blessed(
            artifact_utils.get_single_instance(input_dict["model_blessing"])
        ):
            _bless(blessing, False)
            return
        config = msgspec.json.decode(exec_properties["config"], type=ProbeConfig)
        report_dir = Path(exec_properties["report_dir"])
        model = Path(
            path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict["model"]))
        )
        found = checks.probe(
            model,
            reference.read_images(input_dict["examples"], config.images),
            functools.partial(reference.answers, model),
            config,
            Path(self._get_tmp_dir()),
            report_dir / LOG,
        )
        passed = all(check.passed for check in found)
        verdict = Verdict(gate="probe", passed=passed, checks=tuple(found))
        _bless(blessing, passed)
        verdict.write(Path(blessing.uri) / REPORT)
        verdict.write(report_dir / REPORT)
        if not passed:
            raise Refused(verdict.in_words(), msgspec.to_builtins(verdict))


class ServingProbeSpec(ComponentSpec):
    """Inputs, outputs and parameters of ServingProbe."""

    PARAMETERS = {  # noqa: RUF012
        "config": ExecutionParameter(type=str),
        "report_dir": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "model": ChannelParameter(type=standard_artifacts.Model),
        "model_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=standard_artifacts.InfraBlessing)}  # noqa: RUF012


class ServingProbe(BaseComponent):
    """Blesses a candidate that a model server serves: loaded, with its own answers, in time."""

    SPEC_CLASS = ServingProbeSpec
    EXECUTOR_SPEC = ExecutorClassSpec(Executor)

    def __init__(
        self,
        examples: BaseChannel,
        model: BaseChannel,
        model_blessing: BaseChannel,
        config: str,
        report_dir: str,
    ):
        """Makes the node.

        Args:
            examples: of the training window; the server is asked with images of the eval split.
            model: the candidate.
            model_blessing: the model gate's.
            config: ProbeConfig as JSON.
            report_dir: folder for `serving_probe.json` and the server's log.
        """
        super().__init__(
            spec=ServingProbeSpec(
                examples=examples,
                model=model,
                model_blessing=model_blessing,
                config=config,
                report_dir=report_dir,
                blessing=Channel(type=standard_artifacts.InfraBlessing),
            )
        )


def _bless(blessing: types.Artifact, blessed: bool) -> None:
    blessing.set_int_custom_property(_BLESSED, int(blessed))
    folder = Path(blessing.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILES[blessed]).touch()
