"""What the nodes of a pipeline have written into a project, as plain data that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_data_validation as tfdv
import tensorflow_model_analysis as tfma
from google.protobuf import json_format


def output(project: Path, node: str, name: str) -> Path:
    """What a node wrote last."""
    return max((project / "tfx" / node / name).iterdir(), key=lambda path: int(path.name))


def records(project: Path, split: str) -> list[bytes]:
    """The examples of a split that the last run took in, in an order that does not depend on it."""
    files = (output(project, "ImportExampleGen", "examples") / f"Split-{split}").iterdir()
    found = tf.data.TFRecordDataset([str(file) for file in files], "GZIP")
    return sorted(record.numpy() for record in found)


def statistics(project: Path, split: str) -> dict[str, dict[str, float]]:
    folder = output(project, "StatisticsGen", "statistics")
    [dataset] = tfdv.load_stats_binary(str(folder / f"Split-{split}" / "FeatureStats.pb")).datasets
    found = {"": {"examples": float(dataset.num_examples)}}
    for feature in dataset.features:
        numbers: dict[str, float] = {}
        _flatten(json_format.MessageToDict(feature), "", numbers)
        found[feature.path.step[0]] = numbers
    return found


def _flatten(node: Any, path: str, into: dict[str, float]) -> None:
    """All numbers of nested data, and how often each text stands in it."""
    if isinstance(node, dict):
        # Of equally many the order is not defined.
        label = node.get("label", node.get("value")) if "sampleCount" in node else None
        for key, value in node.items():
            if key not in ("lowRank", "highRank", "topValues"):
                _flatten(value, f"{path}.{label or ''}{key}", into)
    elif isinstance(node, list):
        keyed = all(isinstance(item, dict) and "label" in item for item in node)
        for place, item in enumerate(node):
            _flatten(item, path if keyed else f"{path}[{place}]", into)
    elif isinstance(node, int | float):
        into[path] = float(node)
    else:
        into[f"{path}={node}"] = into.get(f"{path}={node}", 0) + 1


def metrics(folder: Path) -> dict[str, float]:
    """Every number by slice and name."""
    found = {}
    for sliced, outputs in tfma.load_eval_result(str(folder)).slicing_metrics:
        for per_class in outputs.values():
            for keys, metrics in per_class.items():
                for name, value in metrics.items():
                    if "doubleValue" in value:
                        found[f"{sliced} {keys} {name}"] = value["doubleValue"]
    assert len(found) > 5
    return found
