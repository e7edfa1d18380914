"""The data gate as TFX runs it: artifacts in, a blessing or a refusal out."""

import json
from pathlib import Path

import msgspec
import pandas as pd
import pytest
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import statistics_pb2
from tfx.types import artifact_utils, standard_artifacts

from graftline.components.data_gate.component import DataBlessing, Executor
from graftline.components.data_gate.config import DataGateConfig
from graftline.components.verdict import Verdict
from graftline.schemas import curated
from graftline.serving.errors import Refused

CLASSES = ("rose", "tulip")


def images(count: int, **changed: object) -> pd.DataFrame:
    numbers = pd.RangeIndex(count)
    columns = {
        "image": [b"encoded"] * count,
        "label": [CLASSES[i % 2] for i in numbers],
        "width": 227,
        "height": 227,
        "channels": 3,
        "byte_size": 9000 + 7 * (numbers % 101),
        "luma_mean": (100.0 + numbers % 40).astype("float32"),
        "luma_std": (50.0 + numbers % 11).astype("float32"),
    }
    return pd.DataFrame({**columns, **changed}, index=numbers)


class Gate:
    """Runs the executor on the statistics of spans, as many as a test needs."""

    def __init__(self, folder: Path):
        self.folder = folder

    def judge(
        self,
        span: int,
        splits: dict[str, pd.DataFrame],
        previous: list[DataBlessing] | None = None,
        config: DataGateConfig | None = None,
        accept_reason: str = "",
    ) -> DataBlessing:
        examples = self._artifact(standard_artifacts.Examples, span, "examples")
        examples.set_int_custom_property("span", span)
        examples.set_int_custom_property("version", 2)
        statistics = self._artifact(standard_artifacts.ExampleStatistics, span, "statistics")
        anomalies = self._artifact(standard_artifacts.ExampleAnomalies, span, "anomalies")
        for name, frame in splits.items():
            self._describe(frame, Path(statistics.uri), Path(anomalies.uri), f"Split-{name}")
        for artifact in (statistics, anomalies):
            artifact.split_names = artifact_utils.encode_split_names(list(splits))
        blessing = self._artifact(DataBlessing, span, "blessing")
        Executor().Do(
            {
                "examples": [examples],
                "statistics": [statistics],
                "anomalies": [anomalies],
                "previous": previous or [],
            },
            {"blessing": [blessing]},
            {
                "config": msgspec.json.encode(config or DataGateConfig()).decode(),
                "accept_reason": accept_reason,
                "report_dir": str(self.report_dir(span)),
            },
        )
        return blessing

    def report_dir(self, span: int) -> Path:
        return self.folder / f"run-{span}"

    def verdict(self, span: int) -> Verdict:
        return Verdict.read(self.report_dir(span) / "data_gate.json")

    def _artifact(self, kind: type, span: int, name: str) -> object:
        artifact = kind()
        artifact.uri = str(self.folder / f"{name}-{span}")
        return artifact

    def _describe(self, frame: pd.DataFrame, statistics: Path, anomalies: Path, split: str) -> None:
        schema = curated.build(CLASSES)
        found = tfdv.generate_statistics_from_dataframe(frame, tfdv.StatsOptions(schema=schema))
        if frame.empty:
            # As Beam writes an empty split; from a frame TFDV would still list its columns.
            found = statistics_pb2.DatasetFeatureStatisticsList(datasets=[{"num_examples": 0}])
        for folder, name, proto in (
            (statistics, "FeatureStats.pb", found),
            (anomalies, "SchemaDiff.pb", tfdv.validate_statistics(found, schema)),
        ):
            (folder / split).mkdir(parents=True)
            (folder / split / name).write_bytes(proto.SerializeToString())


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def test_a_span_that_fits_the_schema_is_blessed(gate: Gate) -> None:
    blessing = gate.judge(3, {"train": images(80), "eval": images(10), "test": images(10)})
    assert (blessing.span, blessing.version, blessing.blessed) == (3, 2, 1)
    assert gate.verdict(3).passed
    assert Verdict.read(Path(blessing.uri) / "data_gate.json") == gate.verdict(3)


def test_an_unknown_class_stops_the_run_and_is_named(gate: Gate) -> None:
    odd = images(20)
    odd.loc[:2, "label"] = "tulpe, gelb"
    with pytest.raises(Refused, match='label: class "tulpe, gelb" is not in the schema'):
        gate.judge(1, {"train": images(80), "test": odd})
    verdict = gate.verdict(1)
    assert not verdict.passed
    assert verdict.failed[0].note.endswith("is not in the schema (3 images)")


def test_an_unknown_class_beyond_those_that_statistics_list_still_stops_the_run(gate: Gate) -> None:
    many = images(1200).assign(label=[f"class {i:04}" for i in range(1199)] + ["rose"])
    with pytest.raises(Refused):
        gate.judge(1, {"train": many})
    assert not gate.verdict(1).passed


def test_nobody_can_let_an_unknown_class_through(gate: Gate) -> None:
    odd = images(20)
    odd.loc[:2, "label"] = "tulpe"
    with pytest.raises(Refused, match="tulpe"):
        gate.judge(1, {"train": odd}, accept_reason="it is a tulip")
    assert gate.verdict(1).final
    assert not gate.verdict(1).overridden


def test_the_same_anomaly_in_two_splits_is_told_once(gate: Gate) -> None:
    nameless = images(20).drop(columns="luma_std")
    with pytest.raises(Refused):
        gate.judge(1, {"train": nameless, "test": nameless})
    assert [check.note for check in gate.verdict(1).failed] == [
        "luma_std: column is completely missing (in train, test)"
    ]


def test_an_accepted_anomaly_goes_on_with_the_reason_recorded(gate: Gate) -> None:
    odd = images(20, luma_mean=400.0)
    blessing = gate.judge(1, {"train": odd}, accept_reason="new camera counts to 1023")
    assert blessing.blessed == 1
    verdict = gate.verdict(1)
    assert verdict.passed
    assert verdict.overridden == "new camera counts to 1023"
    assert [check.slice for check in verdict.failed] == ["luma_mean"]


def test_a_reason_given_without_need_is_not_recorded_as_an_override(gate: Gate) -> None:
    gate.judge(1, {"train": images(20)}, accept_reason="just in case")
    assert gate.verdict(1).overridden == ""


def test_an_empty_split_is_no_anomaly(gate: Gate) -> None:
    assert gate.judge(1, {"train": images(20), "eval": images(0)}).blessed == 1


def test_a_span_without_images_is_refused(gate: Gate) -> None:
    with pytest.raises(Refused, match="span 4 holds no images"):
        gate.judge(4, {"train": images(0), "test": images(0)})


def test_a_shift_against_the_span_before_stops_the_run(gate: Gate) -> None:
    before = gate.judge(1, {"train": images(200)})
    with pytest.raises(Refused, match=r"height: 300.0 instead of 227.0 in span 1"):
        gate.judge(2, {"train": images(200, height=300)}, previous=[before])


def test_an_accepted_shift_is_what_the_next_span_is_compared_with(gate: Gate) -> None:
    first = gate.judge(1, {"train": images(200)})
    larger = {"train": images(200, height=300)}
    second = gate.judge(2, larger, previous=[first], accept_reason="larger scans from now on")
    assert gate.judge(3, larger, previous=[second]).blessed == 1


def test_a_shift_is_let_through_where_the_check_is_off(gate: Gate) -> None:
    before = gate.judge(1, {"train": images(200)})
    off = DataGateConfig(shift=False)
    assert gate.judge(2, {"train": images(200, height=300)}, [before], off).blessed == 1


def test_three_images_are_blessed_and_called_undecidable(gate: Gate) -> None:
    before = gate.judge(1, {"train": images(200)})
    assert gate.judge(2, {"train": images(3, height=300)}, previous=[before]).blessed == 1
    assert "too few" in gate.verdict(2).undecided[0].note


def test_the_report_of_a_refusal_is_plain_json(gate: Gate) -> None:
    with pytest.raises(Refused):
        gate.judge(1, {"train": images(0)})
    report = json.loads((gate.report_dir(1) / "data_gate.json").read_text())
    assert report["gate"] == "data"
    assert report["checks"][0]["passed"] is False
