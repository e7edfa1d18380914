"""The data gate as a node: stops the run where a span does not fit the schema or has shifted.

In come the statistics of the run's span, what ExampleValidator found, and the blessing of the span
before. Out goes a DataBlessing, which makes the span part of training windows and carries what the
comparison with the next span needs. A refused span has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.components.example_validator.executor import DEFAULT_FILE_NAME
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from graftline.components.data_gate.anomalies import describe
from graftline.components.data_gate.config import DataGateConfig
from graftline.components.data_gate.shift import compare
from graftline.components.data_gate.summary import SpanSummary, summarize
from graftline.components.verdict import OVERALL, Check, Verdict
from graftline.serving.errors import Refused

REPORT = "data_gate.json"
SUMMARY = "summary.json"


class DataBlessing(Artifact):
    """A span that may be trained on; its folder holds the span's summary and the verdict."""

    TYPE_NAME = "DataBlessing"
    PROPERTIES = {  # noqa: RUF012
        "span": Property(type=PropertyType.INT),
        "version": Property(type=PropertyType.INT),
        "blessed": Property(type=PropertyType.INT),
    }


class Executor(BaseExecutor):
    """Judges one span."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the verdict, and blesses the span or stops the run.

        Args:
            input_dict: as DataGate's inputs.
            output_dict: `blessing`.
            exec_properties: as DataGate's parameters.

        Raises:
            Refused: the span has anomalies or has shifted, and nobody accepted it or nobody can;
                the message is the verdict in words.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        config = msgspec.json.decode(exec_properties["config"], type=DataGateConfig)
        reason = exec_properties.get("accept_reason") or ""

        examples = artifact_utils.get_single_instance(input_dict["examples"])
        blessing.span = examples.get_int_custom_property("span")
        blessing.version = examples.get_int_custom_property("version")
        summary = _summary(blessing, artifact_utils.get_single_instance(input_dict["statistics"]))
        checks = _anomalies(artifact_utils.get_single_instance(input_dict["anomalies"]), summary)
        previous = input_dict.get("previous") or []
        if config.shift and previous:
            old = SpanSummary.read(Path(artifact_utils.get_single_uri(previous)) / SUMMARY)
            checks += compare(summary, old, config)

        found = Verdict(gate="data", passed=True, checks=tuple(checks))
        overridden = reason if found.failed and not found.final else ""
        verdict = msgspec.structs.replace(
            found, passed=bool(overridden) or not found.failed, overridden=overridden
        )
        summary.write(Path(blessing.uri) / SUMMARY)
        verdict.write(Path(blessing.uri) / REPORT)
        verdict.write(Path(exec_properties["report_dir"]) / REPORT)
        blessing.blessed = int(verdict.passed)
        if not verdict.passed:
            raise Refused(verdict.in_words())


class DataGateSpec(ComponentSpec):
    """Inputs, outputs and parameters of DataGate."""

    PARAMETERS = {  # noqa: RUF012
        "config": ExecutionParameter(type=str),
        "accept_reason": ExecutionParameter(type=str, optional=True),
        "report_dir": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies),
        "previous": ChannelParameter(type=DataBlessing, optional=True),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=DataBlessing)}  # noqa: RUF012


class DataGate(BaseComponent):
    """Stops the run where a span has anomalies or differs from the span before."""

    SPEC_CLASS = DataGateSpec
    EXECUTOR_SPEC = ExecutorClassSpec(Executor)

    def __init__(
        self,
        examples: BaseChannel,
        statistics: BaseChannel,
        anomalies: BaseChannel,
        config: str,
        report_dir: str,
        previous: BaseChannel | None = None,
        accept_reason: str = "",
    ):
        """Makes the node.

        Args:
            examples: Examples of the run's span.
            statistics: ExampleStatistics of it.
            anomalies: ExampleAnomalies of it.
            config: DataGateConfig as JSON.
            report_dir: folder for `data_gate.json`.
            previous: DataBlessing of the span before; may be empty.
            accept_reason: why a person lets the span through, empty for none; recorded.
        """
        super().__init__(
            spec=DataGateSpec(
                examples=examples,
                statistics=statistics,
                anomalies=anomalies,
                previous=previous,
                config=config,
                accept_reason=accept_reason,
                report_dir=report_dir,
                blessing=Channel(type=DataBlessing),
            )
        )


def _summary(blessing: types.Artifact, statistics: types.Artifact) -> SpanSummary:
    splits = artifact_utils.decode_split_names(statistics.split_names)
    loaded = (stats_artifact_utils.load_statistics(statistics, split).proto() for split in splits)
    return summarize(
        blessing.span, blessing.version, (dataset for stats in loaded for dataset in stats.datasets)
    )


def _anomalies(artifact: types.Artifact, summary: SpanSummary) -> list[Check]:
    if not summary.images:
        note = f"span {summary.span} holds no images"
        return [
            Check(metric="images", slice=OVERALL, candidate=0, passed=False, note=note, final=True)
        ]
    return describe(
        {
            split: anomalies_pb2.Anomalies.FromString(
                (
                    Path(artifact_utils.get_split_uri([artifact], split)) / DEFAULT_FILE_NAME
                ).read_bytes()
            )
            for split in artifact_utils.decode_split_names(artifact.split_names)
        },
        summary,
    )
