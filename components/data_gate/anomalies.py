"""What ExampleValidator found, in words that name the feature and the value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tensorflow_metadata.proto.v0 import anomalies_pb2

from graftline.components.data_gate.summary import LABEL, SpanSummary
from graftline.components.verdict import OVERALL, Check

ANOMALY = "anomaly"

_UNKNOWN_CLASS = anomalies_pb2.AnomalyInfo.ENUM_TYPE_UNEXPECTED_STRING_VALUES
# Records whose label is no class of the schema, or that have none, cannot be trained on.
_NO_LABEL = (
    _UNKNOWN_CLASS,
    anomalies_pb2.AnomalyInfo.SCHEMA_MISSING_COLUMN,
    anomalies_pb2.AnomalyInfo.FEATURE_TYPE_NOT_PRESENT,
    anomalies_pb2.AnomalyInfo.FEATURE_TYPE_LOW_FRACTION_PRESENT,
    anomalies_pb2.AnomalyInfo.FEATURE_TYPE_LOW_NUMBER_PRESENT,
    anomalies_pb2.AnomalyInfo.UNEXPECTED_DATA_TYPE,
)


def describe(anomalies: Mapping[str, anomalies_pb2.Anomalies], summary: SpanSummary) -> list[Check]:
    """One check per anomaly, those of several splits put together; one that passed if none.

    Args:
        anomalies: what was found in each split; each carries the schema that it was found with.
        summary: the span, for the classes and their numbers of images.
    """
    splits: dict[tuple[str, str, bool], list[str]] = {}
    for split, found in anomalies.items():
        for feature, description, final, where in _anomalies(found, summary, split):
            splits.setdefault((feature, description, final), []).extend(where)
    if not splits:
        return [
            Check(metric=ANOMALY, slice=OVERALL, passed=True, note="every record fits the schema")
        ]
    return [
        Check(
            metric=ANOMALY,
            slice=feature,
            passed=False,
            note=f"{feature}: {description}" + (f" (in {', '.join(where)})" if where else ""),
            final=final,
        )
        for (feature, description, final), where in splits.items()
    ]


def _anomalies(
    found: anomalies_pb2.Anomalies, summary: SpanSummary, split: str
) -> Iterator[tuple[str, str, bool, list[str]]]:
    """Feature, description, whether it is final, and where, for each anomaly of a split."""
    for feature, info in sorted(found.anomaly_info.items()):
        for reason in info.reason:
            # TFDV's own sentence runs the names together and escapes them. It remains where the
            # statistics, which list 1000 classes, do not have the name.
            unknown = feature == LABEL and reason.type == _UNKNOWN_CLASS
            final = feature == LABEL and reason.type in _NO_LABEL
            classes = _unknown_classes(found, summary) if unknown else []
            if classes:
                yield from ((LABEL, text, final, []) for text in classes)
            else:
                text = (reason.description or info.description).strip().rstrip(".")
                yield feature, text[:1].lower() + text[1:], final, [split]
    for reason in found.dataset_anomaly_info.reason:
        yield "records", reason.description, False, [split]


def _unknown_classes(found: anomalies_pb2.Anomalies, summary: SpanSummary) -> list[str]:
    known = {
        value
        for domain in found.baseline.string_domain
        if domain.name == LABEL
        for value in domain.value
    }
    return [
        f'class "{name}" is not in the schema ({count} images)'
        for name, count in sorted(summary.classes.items())
        if name not in known
    ]
