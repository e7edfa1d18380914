"""The model gate as a node: blesses a candidate or refuses it, and says why.

In come the Evaluator's per-image predictions; out goes TFX's standard ModelBlessing, which any
Pusher understands, with the verdict beside it. A refused candidate stops nothing: it is simply not
pushed, and stays with its report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tfx import types
from tfx.components.evaluator import constants
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from graftline.components.model_gate import checks, confusion
from graftline.components.model_gate.config import ModelGateConfig
from graftline.components.model_gate.predictions import read_predictions
from graftline.components.verdict import Verdict

REPORT = "model_gate.json"
PICTURE = "confusion_matrix.png"


class Executor(BaseExecutor):
    """Judges one candidate."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the verdict and the blessing.

        Args:
            input_dict: as ModelGate's inputs.
            output_dict: `blessing`.
            exec_properties: as ModelGate's parameters.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        config = msgspec.json.decode(exec_properties["config"], type=ModelGateConfig)
        classes = msgspec.json.decode(exec_properties["classes"], type=list[str])
        reason = exec_properties.get("bless_reason") or ""
        report_dir = Path(exec_properties["report_dir"])
        baseline = input_dict.get("baseline") or []
        number = exec_properties.get("baseline_version") or 0
        in_service = (f"version {number}" if number else "the baseline") if baseline else ""

        evaluation = Path(artifact_utils.get_single_uri(input_dict["evaluation"]))
        predictions = read_predictions(evaluation, classes)
        found = checks.judge(predictions, config, in_service)
        refused = any(check.passed is False for check in found)
        verdict = Verdict(
            gate="model",
            passed=bool(reason) or not refused,
            overridden=reason if refused else "",
            checks=tuple(found),
        )
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        _bless(blessing, verdict.passed, input_dict["model"][0], baseline)
        verdict.write(Path(blessing.uri) / REPORT)
        verdict.write(report_dir / REPORT)
        confusion.draw(predictions.label, predictions.candidate, classes, report_dir / PICTURE)


class ModelGateSpec(ComponentSpec):
    """Inputs, outputs and parameters of ModelGate."""

    PARAMETERS = {  # noqa: RUF012
        "config": ExecutionParameter(type=str),
        "classes": ExecutionParameter(type=str),
        "bless_reason": ExecutionParameter(type=str, optional=True),
        "baseline_version": ExecutionParameter(type=int, optional=True),
        "report_dir": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "model": ChannelParameter(type=standard_artifacts.Model),
        "baseline": ChannelParameter(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=standard_artifacts.ModelBlessing)}  # noqa: RUF012


class ModelGate(BaseComponent):
    """Blesses a candidate that reaches its bounds and is no worse than the version in service."""

    SPEC_CLASS = ModelGateSpec
    EXECUTOR_SPEC = ExecutorClassSpec(Executor)

    def __init__(
        self,
        evaluation: BaseChannel,
        model: BaseChannel,
        config: str,
        classes: str,
        report_dir: str,
        baseline: BaseChannel | None = None,
        bless_reason: str = "",
        baseline_version: int = 0,
    ):
        """Makes the node.

        Args:
            evaluation: ModelEvaluation of our Evaluator.
            model: the candidate.
            config: ModelGateConfig as JSON.
            classes: class names in the order of the model's outputs, as a JSON list.
            report_dir: folder for `model_gate.json` and `confusion_matrix.png`.
            baseline: the model in service; may be empty.
            bless_reason: why a person blesses a refused candidate, empty for none; recorded.
            baseline_version: number of the version in service, 0 for none.
        """
        super().__init__(
            spec=ModelGateSpec(
                evaluation=evaluation,
                model=model,
                baseline=baseline,
                config=config,
                classes=classes,
                bless_reason=bless_reason,
                baseline_version=baseline_version,
                report_dir=report_dir,
                blessing=Channel(type=standard_artifacts.ModelBlessing),
            )
        )


def _bless(
    blessing: types.Artifact, blessed: bool, model: types.Artifact, baseline: list[types.Artifact]
) -> None:
    """Marks the blessing in the way of TFX's Evaluator, for its Pusher and its resolvers."""
    properties = {
        constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY: model.uri,
        constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY: model.id,
    }
    if baseline:
        properties[constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY] = baseline[0].uri
        properties[constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY] = baseline[0].id
    if blessed:
        name, value = constants.BLESSED_FILE_NAME, constants.BLESSED_VALUE
    else:
        name, value = constants.NOT_BLESSED_FILE_NAME, constants.NOT_BLESSED_VALUE
    properties[constants.ARTIFACT_PROPERTY_BLESSED_KEY] = value
    for key, content in properties.items():
        if isinstance(content, int):
            blessing.set_int_custom_property(key, content)
        else:
            blessing.set_string_custom_property(key, content)
    folder = Path(blessing.uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
