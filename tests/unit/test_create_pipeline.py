"""The compiled pipeline: what a node's cache key sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pandas as pd
import pytest
import tensorflow_data_validation as tfdv
from tfx.proto.orchestration import pipeline_pb2

from graftline.components.data_gate.summary import summarize
from graftline.components.ingest.spans import SPLITS, SUMMARY, Summary
from graftline.components.trainer.config import TrainerConfig
from graftline.pipeline.config import Config
from graftline.pipeline.create_pipeline import compile_pipeline
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.project import Project
from graftline.schemas import curated

SPAN = SpanVersion(1, 1)
_SAY_DIGEST = "from graftline.pipeline.code_digest import code_digest; print(code_digest(), end='')"
PLAN = Plan(run_id="run-0001", target=SPAN, window=(SPAN,))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    trainer = TrainerConfig(backbone="mobilenet_v2", weights="weights.h5")
    made = Project(tmp_path, msgspec.structs.replace(Config(), trainer=trainer))
    curated.write(curated.build(["a", "b"]), made.schema)
    folder = made.spans / "span-1" / "version-1"
    folder.mkdir(parents=True)
    summary = Summary(
        source="here",
        kind="folder per class",
        created="2026-01-01",
        graftline="0",
        images=3,
        bytes=3,
        counts={split: {"a": 1} for split in SPLITS},
        quarantined={},
    )
    (folder / SUMMARY).write_bytes(msgspec.json.encode(summary))
    (tmp_path / "weights.h5").write_bytes(b"some")
    return made


def parameters(ir: pipeline_pb2.Pipeline, node: str) -> str:
    [found] = [n.pipeline_node for n in ir.nodes if n.pipeline_node.node_info.id == node]
    return str(found.parameters)


def test_compiling_twice_gives_the_same_pipeline_and_writes_nothing(project):
    before = sorted(project.root.rglob("*"))
    assert compile_pipeline(project, PLAN) == compile_pipeline(project, PLAN)
    assert sorted(project.root.rglob("*")) == before


def test_other_weights_under_the_same_name_are_another_training(project):
    before = compile_pipeline(project, PLAN)
    (project.root / "weights.h5").write_bytes(b"others")
    after = compile_pipeline(project, PLAN)
    assert parameters(before, "Trainer") != parameters(after, "Trainer")
    assert parameters(before, "Transform") == parameters(after, "Transform")


def test_another_schema_is_seen_by_every_node(project):
    before = compile_pipeline(project, PLAN)
    curated.write(curated.build(["a", "b", "c"]), project.schema)
    after = compile_pipeline(project, PLAN)
    for node in ("ImportExampleGen", "StatisticsGen", "Trainer", "Pusher"):
        assert parameters(before, node) != parameters(after, node)


def test_the_digest_of_the_code_does_not_depend_on_what_has_been_imported():
    said = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"{before}\n{_SAY_DIGEST}"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for before in ("", "import setuptools, pkg_resources")
    ]
    assert said[0] == said[1] != ""


def options_of_statistics(project: Project, classes: list[str]) -> tfdv.StatsOptions:
    curated.write(curated.build(classes), project.schema)
    ir = compile_pipeline(project, PLAN)
    [node] = [n.pipeline_node for n in ir.nodes if n.pipeline_node.node_info.id == "StatisticsGen"]
    value = node.parameters.parameters["stats_options_json"].field_value.string_value
    return tfdv.StatsOptions.from_json(value)


def test_of_a_thousand_classes_every_one_is_counted_exactly_by_the_sketch(project):
    classes = [f"class {number}" for number in range(1000)]
    options = options_of_statistics(project, classes)
    assert options.use_sketch_based_topk_uniques
    labels = [name for number, name in enumerate(classes) for _ in range(1 + number % 13)]
    frame = pd.DataFrame({curated.LABEL: labels}).sample(frac=1, random_state=0)
    found = tfdv.generate_statistics_from_dataframe(frame, options)
    assert summarize(1, 1, found.datasets).classes == {
        name: 1 + number % 13 for number, name in enumerate(classes)
    }


def test_more_classes_are_counted_in_tables_of_all_values(project):
    options = options_of_statistics(project, [f"class {number}" for number in range(1001)])
    assert not options.use_sketch_based_topk_uniques
