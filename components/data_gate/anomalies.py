"""What ExampleValidator found, in words that name the feature and the value."""

from __future__ import annotations

from collections.abc import Mapping

from tensorflow_metadata.proto.v0 import anomalies_pb2

from graftline.components.data_gate.summary import LABEL, SpanSummary
from graftline.components.verdict import OVERALL, Check

ANOMALY = "anomaly"

_UNKNOWN_CLASS = anomalies_pb2.AnomalyInfo.ENUM_TYPE_UNEXPECTED_STRING_VALUES


def describe(anomalies: Mapping[str, anomalies_pb2.Anomalies], summary: SpanSummary) -> list[Check]:
    """One check per anomaly, those of several splits put together; one that passed if none.

    Args:
        anomalies: what was found in each split; each carries the schema that it was found with.
        summary: the span, for the classes and their numbers of images.
    """
    splits: dict[tuple[str, str], list[str]] = {}
    for split, found in anomalies.items():
        for feature, description in _anomalies(found, summary):
            splits.setdefault((feature, description), []).append(split)
    if not splits:
        return [
            Check(metric=ANOMALY, slice=OVERALL, passed=True, note="every record fits the schema")
        ]
    return [
        Check(
            metric=ANOMALY,
            slice=feature,
            passed=False,
            note=f"{feature}: {description} (in {', '.join(where)})",
        )
        for (feature, description), where in splits.items()
    ]


def _anomalies(found: anomalies_pb2.Anomalies, summary: SpanSummary) -> list[tuple[str, str]]:
    described = []
    for feature, info in sorted(found.anomaly_info.items()):
        for reason in info.reason:
            if feature == LABEL and reason.type == _UNKNOWN_CLASS:
                described += [(LABEL, text) for text in _unknown_classes(found, summary)]
            else:
                text = (reason.description or info.description).strip().rstrip(".")
                described.append((feature, text[:1].lower() + text[1:]))
    described += [("records", reason.description) for reason in found.dataset_anomaly_info.reason]
    return described


def _unknown_classes(found: anomalies_pb2.Anomalies, summary: SpanSummary) -> list[str]:
    # TFDV's own sentence runs names together and escapes them; a name may hold commas.
    known = {
        value
        for domain in found.baseline.string_domain
        if domain.name == LABEL
        for value in domain.value
    }
    return [
        f'class "{name}" is not in the schema ({count} images in all splits)'
        for name, count in sorted(summary.classes.items())
        if name not in known
    ]
