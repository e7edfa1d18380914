"""Gives a node of TFX its Beam options when it is executed, not when the pipeline is compiled.

TFX's cache looks at what is compiled: with options there, a second process or another cluster would
make every node run again.
"""

from __future__ import annotations

from typing import Any

from tfx.orchestration.portable.beam_executor_operator import BeamExecutorOperator
from tfx.proto.orchestration.executable_spec_pb2 import BeamExecutableSpec

from graftline.pipeline.beam.config import STAGES, BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.beam.workers import preload


def executor_operators(config: BeamConfig, node_id: str) -> dict[type, Any]:
    """What TFX's launcher takes as `custom_executor_operators`; empty for a node without Beam."""
    stage = next((stage for stage in STAGES if stage == node_id), None)
    if stage is None:
        return {}
    preload(config, [stage])  # unless a run has begun to, for all of its nodes
    options = beam_options(config, stage)

    class Operator(BeamExecutorOperator):
        """TFX's own, with the options of this node."""

        def __init__(self, executor_spec: BeamExecutableSpec, platform_config: Any = None) -> None:
            extended = BeamExecutableSpec()
            extended.CopyFrom(executor_spec)
            for option in options:
                extended.beam_pipeline_args_placeholders.add().value.string_value = option
            super().__init__(extended, platform_config)

    return {BeamExecutableSpec: Operator}
