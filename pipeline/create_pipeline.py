"""The pipeline: which nodes there are and what flows between them.

One definition for the local runner, CI and a cluster: it follows from the project's configuration,
schema and spans and from the run's plan, and writes nothing. See docs/architecture.md for the
picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import tensorflow_data_validation as tfdv
from tfx.components.example_validator.component import ExampleValidator
from tfx.components.pusher.component import Pusher
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.components.statistics_gen.component import StatisticsGen
from tfx.components.trainer.component import Trainer
from tfx.components.transform.component import Transform
from tfx.components.tuner.component import Tuner
from tfx.dsl.compiler.compiler import Compiler
from tfx.dsl.components.base import executor_spec
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import (
    example_gen_pb2,
    pusher_pb2,
    range_config_pb2,
    trainer_pb2,
    transform_pb2,
)
from tfx.proto.orchestration import pipeline_pb2
from tfx.types import standard_artifacts
from tfx.types.channel import Channel

from graftline.components import publisher
from graftline.components.data_gate.component import DataBlessing, DataGate
from graftline.components.data_gate.summary import QUANTILES
from graftline.components.example_gen import SpanExampleGen
from graftline.components.ingest.spans import SPLITS, find_span
from graftline.components.model_gate.component import ModelGate
from graftline.components.model_gate.evaluator import Evaluator
from graftline.components.serving_probe.component import ServingProbe
from graftline.pipeline.code_digest import (
    code_digest,
    code_revision,
    features_digest,
    file_digest,
)
from graftline.pipeline.config import to_tree
from graftline.pipeline.evaluation import eval_config
from graftline.pipeline.plan import Plan
from graftline.pipeline.preprocessing import preprocessing_config
from graftline.pipeline.project import Project
from graftline.pipeline.resolvers import InServiceStrategy, PreviousSpanStrategy, WindowStrategy
from graftline.schemas import curated

NAME = "graftline"

# How far a pipeline goes: to the data gate, as for an earlier span of the window that no run has
# seen; to the tuner; or to publication.
Extent = Literal["data", "tuning", "publication"]

# The data gate needs the count of every class; TFDV keeps a thousand of them by default.
_MOST_CLASSES = 100_000
# So many classes TFDV's sketch counts exactly, with a third less work than the tables of all values
# that more of them need.
_SKETCHED_CLASSES = 1_000


@dataclass(frozen=True)
class DataNodes:
    """The nodes that take in one span and judge it; all that a span of the window needs."""

    example_gen: SpanExampleGen
    schema: ImportSchemaGen
    gate: DataGate
    all: tuple[BaseNode, ...]


@dataclass(frozen=True)
class TrainingInputs:
    """What a training, or many of them, takes.

    Attributes:
        window: resolves the examples of all spans of the window.
        transform: makes the graph of the preprocessing.
        arguments: the inputs and splits that Trainer and Tuner take alike.
        settings: what `components.trainer.run.run_fn` wants to know.
    """

    window: Resolver
    transform: Transform
    arguments: dict[str, Any]
    settings: dict[str, Any]


def create_pipeline(project: Project, plan: Plan, extent: Extent = "publication") -> Pipeline:
    """Builds the pipeline of one run.

    Args:
        project: folder and configuration.
        plan: what the run decided at its start.
        extent: how far it goes.
    """
    report_dir = str(report_folder(project, plan, extent))
    data = _data_nodes(project, plan, report_dir)
    nodes = list(data.all)
    if extent != "data":
        inputs = _training_inputs(project, plan, data)
        nodes += [inputs.window, inputs.transform]
        if extent == "tuning":
            nodes.append(_tuner(project, inputs))
        else:
            nodes += _model_nodes(project, plan, inputs, report_dir)
    return Pipeline(
        pipeline_name=NAME,
        pipeline_root=str(project.artifacts),
        components=nodes,
        enable_cache=True,
    )


def compile_pipeline(
    project: Project, plan: Plan, extent: Extent = "publication"
) -> pipeline_pb2.Pipeline:
    """Compiles the pipeline to TFX's IR and makes every node's cache key see what TFX overlooks.

    Raises:
        UserError: the schema is refused.
    """
    ir = Compiler().compile(create_pipeline(project, plan, extent))
    unseen = {
        "code_digest": code_digest(),
        "schema_digest": file_digest(project.schema),
        "force": plan.force,
    }
    for node in ir.nodes:
        parameters = node.pipeline_node.parameters.parameters
        for name, value in unseen.items():
            parameters[name].field_value.string_value = value
    return ir


def report_folder(project: Project, plan: Plan, extent: Extent) -> Path:
    """Where the gates write their verdicts: the run's folder, for an earlier span one inside."""
    folder = project.runs / plan.run_id
    return folder / f"span-{plan.target.span}" if extent == "data" else folder


def _data_nodes(project: Project, plan: Plan, report_dir: str) -> DataNodes:
    example_gen = SpanExampleGen(
        input_base=str(project.spans),
        input_config=example_gen_pb2.Input(
            splits=[
                example_gen_pb2.Input.Split(
                    name=split, pattern=f"span-{{SPAN}}/version-{{VERSION}}/{split}/*"
                )
                for split in SPLITS
            ]
        ),
        range_config=range_config_pb2.RangeConfig(
            static_range=range_config_pb2.StaticRange(
                start_span_number=plan.target.span, end_span_number=plan.target.span
            )
        ),
    ).with_id("ImportExampleGen")
    schema = ImportSchemaGen(schema_file=str(project.schema))
    classes = curated.classes(curated.read(project.schema))
    statistics = StatisticsGen(
        examples=example_gen.outputs["examples"],
        schema=schema.outputs["schema"],
        stats_options=tfdv.StatsOptions(
            feature_allowlist=list(curated.DESCRIBED_FEATURES),
            num_quantiles_histogram_buckets=QUANTILES,
            num_rank_histogram_buckets=_MOST_CLASSES,
            use_sketch_based_topk_uniques=len(classes) <= _SKETCHED_CLASSES,
        ),
    )
    validator = ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    previous = Resolver(
        strategy_class=PreviousSpanStrategy,
        config={
            "span": plan.previous.span if plan.previous else 0,
            "version": plan.previous.version if plan.previous else 0,
        },
        blessing=Channel(type=DataBlessing, producer_component_id=DataGate.__name__),
    ).with_id("previous_span")
    gate = DataGate(
        examples=example_gen.outputs["examples"],
        statistics=statistics.outputs["statistics"],
        anomalies=validator.outputs["anomalies"],
        previous=previous.outputs["blessing"],
        config=msgspec.json.encode(project.config.data_gate).decode(),
        accept_reason=plan.accept_anomalies,
        report_dir=report_dir,
    )
    return DataNodes(
        example_gen, schema, gate, (schema, example_gen, statistics, validator, previous, gate)
    )


def _training_inputs(project: Project, plan: Plan, data: DataNodes) -> TrainingInputs:
    config = project.config
    classes = curated.classes(curated.read(project.schema))
    window = Resolver(
        strategy_class=WindowStrategy,
        config={"spans": [[entry.span, entry.version] for entry in plan.window]},
        examples=Channel(
            type=standard_artifacts.Examples, producer_component_id=data.example_gen.id
        ),
        blessing=Channel(type=DataBlessing, producer_component_id=data.gate.id),
    ).with_id("window")
    window.add_upstream_node(data.gate)
    transform = Transform(
        examples=window.outputs["examples"],
        schema=data.schema.outputs["schema"],
        preprocessing_fn="graftline.pipeline.preprocessing.preprocessing_fn",
        custom_config=preprocessing_config(config.image, config.trainer, classes),
        # Pixels are never materialised: the trainer applies the graph in its input pipeline.
        materialize=False,
        disable_statistics=True,
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=[]),
    )
    settings = {
        "image": to_tree(config.image),
        "trainer": {
            **to_tree(config.trainer),
            "weights": str(project.weights_file or config.trainer.weights),
        },
        "weights_cache": str(project.weights_cache),
        "checkpoints": str(project.checkpoints),
        "cluster": str(project.cluster),
        "last_good": str(project.last_good),
        "start_from": f"{plan.start_from}/Format-Serving" if plan.start_from else "",
        "features": {"folder": str(project.features), "code": features_digest()},
        "code": code_digest(),
        # The same path may hold another file the next time.
        "weights_digest": file_digest(project.weights_file) if project.weights_file else "",
        "classes": classes,
    }
    arguments = {
        "examples": window.outputs["examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "schema": data.schema.outputs["schema"],
        "train_args": trainer_pb2.TrainArgs(splits=["train"]),
        "eval_args": trainer_pb2.EvalArgs(splits=["eval"]),
    }
    return TrainingInputs(window, transform, arguments, settings)


def _tuner(project: Project, inputs: TrainingInputs) -> Tuner:
    return Tuner(
        **inputs.arguments,
        tuner_fn="graftline.components.tuner.tuner.tuner_fn",
        custom_config={
            **inputs.settings,
            "tuner": to_tree(project.config.tuner),
            "trials": str(project.trials),
        },
    )


def _model_nodes(
    project: Project, plan: Plan, inputs: TrainingInputs, report_dir: str
) -> list[BaseNode]:
    config = project.config
    examples, schema = inputs.arguments["examples"], inputs.arguments["schema"]
    classes = inputs.settings["classes"]
    trainer = Trainer(
        **inputs.arguments,
        run_fn="graftline.components.trainer.run.run_fn",
        custom_config=inputs.settings,
    )
    in_service = Resolver(
        strategy_class=InServiceStrategy,
        config={"uri": plan.baseline_uri},
        model=Channel(type=standard_artifacts.Model, producer_component_id=trainer.id),
    ).with_id("in_service")
    evaluator = Evaluator(
        examples=examples,
        model=trainer.outputs["model"],
        baseline_model=in_service.outputs["model"],
        example_splits=["test"],
        eval_config=eval_config(config.model_gate, classes),
        schema=schema,
    )
    gate = ModelGate(
        evaluation=evaluator.outputs["evaluation"],
        model=trainer.outputs["model"],
        baseline=in_service.outputs["model"],
        config=msgspec.json.encode(config.model_gate).decode(),
        classes=msgspec.json.encode(classes).decode(),
        bless_reason=plan.bless,
        baseline_version=plan.baseline or 0,
        report_dir=report_dir,
    )
    probe = ServingProbe(
        examples=examples,
        model=trainer.outputs["model"],
        model_blessing=gate.outputs["blessing"],
        config=msgspec.json.encode(config.probe).decode(),
        report_dir=report_dir,
    )
    probes = [probe] if config.probe.enabled else []
    pusher = Pusher(
        model=trainer.outputs["model"],
        model_blessing=gate.outputs["blessing"],
        infra_blessing=probe.outputs["blessing"] if probes else None,
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(project.base_path))
        ),
        custom_config=_publication(project, plan),
        custom_executor_spec=executor_spec.ExecutorClassSpec(publisher.Executor),
    )
    return [trainer, in_service, evaluator, gate, *probes, pusher]


def _publication(project: Project, plan: Plan) -> dict[str, Any]:
    """What the publisher writes into the manifest beside the model's own files."""
    summaries = [
        find_span(project.spans, entry.span, entry.version).summary for entry in plan.window
    ]
    return {
        "images": {split: sum(s.per_split[split] for s in summaries) for split in SPLITS},
        "model": project.config.model.name,
        "spans": [[entry.span, entry.version] for entry in plan.window],
        "config": to_tree(project.config),
        "code_revision": code_revision(project.root),
        "run_id": plan.run_id,
    }
