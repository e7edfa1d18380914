"""`graftline plan`: what a drop will cost, learnt from the runs so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_metadata as mlmd
import msgspec
import pytest
from ml_metadata.proto import metadata_store_pb2

from graftline.components.ingest.spans import SUMMARY, Summary
from graftline.components.trainer.config import TrainerConfig
from graftline.components.trainer.record import Best, Epoch, Phase, TrainingRecord
from graftline.pipeline import forecast
from graftline.pipeline.cli.main import main
from graftline.pipeline.config import Config, load_config, write_config
from graftline.pipeline.cost_model import fit
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.run_record import PUBLISHED, NodeRecord, RunRecord

BYTES = 10_000
SPLITS = {"train": 0.8, "eval": 0.1, "test": 0.1}
Call = Callable[..., tuple[int, str, str]]


class Machine:
    """A project on a machine that takes the same time for the same work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: list[int] = []
        self.exported = ""
        self.derived = 0
        write_config(Config(), folder / "graftline.yaml")
        self._store = _store(folder / "tfx" / "metadata.sqlite")

    def run(self, images: int, exported: str = "frozen", derived: int = 0) -> None:
        """Takes a drop in and trains on all so far; exports the weights of a phase.

        Features of so many images are derived from activations.
        """
        self.exported, self.derived = exported, derived
        self.sizes.append(images)
        number = len(self.sizes)
        span = self.folder / "spans" / f"span-{number}" / "version-1"
        span.mkdir(parents=True)
        (span / SUMMARY).write_bytes(msgspec.json.encode(_summary(images, self.drop(images))))
        window = tuple(SpanVersion(one + 1, 1) for one in range(number))
        run = RunRecord(
            run_id=f"run-{number:04d}",
            span=number,
            version=1,
            window=window,
            state=PUBLISHED,
            started="2026-01-01T10:00:00+00:00",
            nodes=[
                NodeRecord(id=name, state="done", seconds=seconds, peak_mb=1000)
                for name, seconds in self.nodes(images).items()
            ],
        )
        run.finished = f"2026-01-01T{10 + int(run.seconds + 12) // 3600:02d}" + (
            f":{int(run.seconds + 12) % 3600 // 60:02d}:{int(run.seconds + 12) % 60:02d}+00:00"
        )
        folder = self.folder / "runs" / run.run_id
        folder.mkdir(parents=True)
        write_config(load_config(self.folder / "graftline.yaml"), folder / "config.yaml")
        Plan(run_id=run.run_id, target=window[-1], window=window).write(folder)
        run.write(self.folder / "runs")
        _note_training(self._store, run.key, self.folder / "tfx" / f"{number}", self.training())

    def drop(self, images: int) -> float:
        """Seconds of a drop."""
        return 1.0 + 0.004 * images

    def training(self) -> TrainingRecord:
        """What the training of the newest span did."""
        new, all_train = self.sizes[-1], int(0.8 * sum(self.sizes))
        computed = int(0.9 * new)
        return TrainingRecord(
            backbone="efficientnet_lite0",
            weights="bundled",
            alpha=1.0,
            image_size=224,
            seed=0,
            classes=5,
            parameters=1,
            train_images=all_train,
            eval_images=int(0.1 * sum(self.sizes)),
            replicas=1,
            workers=1,
            precision="float32",
            warm_start=False,
            features_computed=computed,
            features_seconds=2 + 0.01 * computed,
            features_derived=self.derived,
            derived_seconds=1 + 0.001 * self.derived if self.derived else 0.0,
            phases=(
                _phase("frozen", 10, 1.0, 1e-4, all_train),
                _phase("fine_tune", 6, 4.0, 5e-3, all_train),
            ),
            exported=Best(phase=self.exported, epoch=1, eval_loss=1, eval_accuracy=1, eval_brier=1),
            seconds=1.0,
        )

    def nodes(self, images: int) -> dict[str, float]:
        """Seconds of every node of a run on a drop of so many images."""
        training = self.training()
        phases = sum(phase.seconds for phase in training.phases)
        return {
            "ImportExampleGen": 1.5 + 0.0005 * images,
            "StatisticsGen": 5 + 0.002 * images,
            "Trainer": 15 + training.features_seconds + training.derived_seconds + phases,
            "Evaluator": 4 + 0.01 * 0.1 * sum(self.sizes),
            "Pusher": 0.1,
        }

    def whole(self, images: int) -> float:
        """Seconds of drop and run, all in all, of the newest span."""
        return self.drop(images) + sum(self.nodes(images).values()) + 12


def _phase(name: str, epochs: int, fixed: float, each: float, images: int) -> Phase:
    epoch = Epoch(
        epoch=1, loss=1, accuracy=1, eval_loss=1, eval_accuracy=1, eval_brier=1, seconds=1
    )
    seconds = fixed + each * images * epochs
    return Phase(
        name=name,
        rate=1e-3,
        trainable_parameters=1,
        epochs=(epoch,) * epochs,
        seconds=seconds,
        images_per_second=images / seconds,
    )


def _summary(images: int, seconds: float) -> Summary:
    counts = {split: {"a": round(share * images)} for split, share in SPLITS.items()}
    return Summary(
        source="",
        kind="",
        created="",
        graftline="",
        images=images,
        bytes=images * BYTES,
        counts=counts,
        quarantined={},
        seconds=seconds,
    )


def _store(database: Path) -> mlmd.MetadataStore:
    database.parent.mkdir(parents=True)
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(database)
    connection.sqlite.connection_mode = 3
    return mlmd.MetadataStore(connection)


def _note_training(
    store: mlmd.MetadataStore, run: str, folder: Path, record: TrainingRecord
) -> None:
    """Writes what TFX writes of a Trainer."""
    folder.mkdir()
    (folder / "training.json").write_bytes(msgspec.json.encode(record))
    pb = metadata_store_pb2
    kinds = (
        store.put_artifact_type(pb.ArtifactType(name="ModelRun")),
        store.put_execution_type(pb.ExecutionType(name="tfx.components.trainer.component.Trainer")),
        store.put_context_type(pb.ContextType(name="pipeline_run")),
    )
    event = pb.Event(type=pb.Event.OUTPUT)
    artifact = pb.Artifact(type_id=kinds[0], uri=str(folder))
    context = pb.Context(type_id=kinds[2], name=run)
    store.put_execution(pb.Execution(type_id=kinds[1]), [(artifact, event)], [context])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def graftline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["plan", *arguments, "--project", str(tmp_path)])
        return end.value.code, *capfd.readouterr()

    return call


@pytest.fixture
def planned(graftline) -> Callable[..., dict[str, Any]]:
    return lambda *arguments: json.loads(graftline(*arguments, "--json")[1])


def test_without_a_run_it_says_how_to_come_to_one(machine, graftline):
    code, _, errors = graftline("--images", "1000")
    assert (code, "There is no run to learn from" in errors) == (2, True)


def test_after_runs_of_two_sizes_a_third_is_told_within_a_tenth(machine, planned):
    for images in (300, 900):
        machine.run(images)
    said = planned("--images", "5000")
    machine.run(5000)
    happened = machine.whole(5000)
    assert said["seconds"] == pytest.approx(happened, rel=0.1)
    assert said["seconds_low"] < happened < said["seconds_high"]
    assert said["runs"] == 2


def test_after_one_run_the_fixed_part_is_a_guess_and_that_is_said(machine, planned):
    machine.run(1000)
    said = planned("--images", "4000")
    assert any("is taken from a table" in note for note in said["notes"])
    machine.run(4000)
    assert said["seconds_low"] < machine.whole(4000) < said["seconds_high"]


def test_stages_that_see_new_images_only_cost_the_drop_not_the_history(machine, planned):
    for images in (500, 1000, 20_000):
        machine.run(images)
    stages = {stage["name"]: stage["seconds"] for stage in planned("--images", "200")["stages"]}
    assert stages["StatisticsGen"] == pytest.approx(5.4, rel=0.1)
    assert stages["Trainer"] > 0.8 * 21_700 * 6 * 5e-3


def test_a_narrower_window_is_cheaper(machine, planned):
    for images in (500, 1000, 8000):
        machine.run(images)
    whole = planned("--images", "200")
    narrow = planned("--images", "200", "window.last=1")
    assert narrow["seconds"] < 0.5 * whole["seconds"]


def test_a_start_from_a_fine_tuned_version_counts_features_of_the_whole_window_from_activations(
    machine, planned
):
    for images in (500, 1000, 20_000):
        machine.run(images, exported="fine_tune")
    cold, warm = planned("--images", "200"), planned("--images", "200", "trainer.warm_start=true")
    upwards = 0.9 * 21_700 * 5e-3 / 3  # of every image, once: a third of an epoch of fine-tuning
    assert warm["seconds"] - cold["seconds"] == pytest.approx(upwards, rel=0.1)
    assert any("for the whole window, once" in note for note in warm["notes"])


def test_where_no_activations_are_stored_it_counts_them_from_the_images(machine, planned):
    write_config(
        Config(trainer=TrainerConfig(feature_store_gb=0)), machine.folder / "graftline.yaml"
    )
    for images in (500, 1000, 20_000):
        machine.run(images, exported="fine_tune")
    cold, warm = planned("--images", "200"), planned("--images", "200", "trainer.warm_start=true")
    assert warm["seconds"] - cold["seconds"] == pytest.approx(0.9 * 21_500 * 0.01, rel=0.1)


def test_what_a_start_from_a_fine_tuned_version_took_before_it_takes_again(machine, planned):
    for images in (500, 1000, 20_000):
        machine.run(images, exported="fine_tune")
    machine.run(1000, exported="fine_tune", derived=20_250)
    cold, warm = planned("--images", "200"), planned("--images", "200", "trainer.warm_start=true")
    again = 22_700 / 22_500 * (1 + 0.001 * 20_250)
    assert warm["seconds"] - cold["seconds"] == pytest.approx(again, rel=0.1)


def test_disk_and_money_follow_the_sizes_and_the_prices(machine, planned):
    for images in (300, 900):
        machine.run(images)
    said = planned(
        "--images", "1000", "--size", "1M", "prices.hour=3600", "prices.gigabyte_month=1"
    )
    # In the span, and as examples.
    assert said["disk_bytes"] == pytest.approx(2e9, rel=0.1)
    assert said["money"] == pytest.approx(said["seconds"], rel=1e-6)
    assert said["money_per_month"] == pytest.approx(2, rel=0.1)
    own = planned("--images", "1000", "prices.hour=3600", 'prices.nodes={"Trainer": 0.0}')
    assert own["money"] < said["money"]


def test_what_does_not_fit_is_told_with_the_knob_to_turn(machine, graftline):
    for images in (300, 900):
        machine.run(images)
    code, said, _ = graftline("--images", "1000000000", "--size", "1M")
    assert code == 0
    assert "The disk does not do" in said
    assert "graftline gc" in said


def test_runs_with_another_network_are_said_to_be_such(machine, planned):
    for images in (300, 900):
        machine.run(images)
    notes = planned("--images", "1000", "image.size=96")["notes"]
    assert any("No run so far had this configuration" in note for note in notes)


@pytest.mark.parametrize("size", ["12 kB", "-1", "0", "k"])
def test_a_size_that_is_none_is_refused(machine, graftline, size):
    code, _, errors = graftline("--size", size)
    assert (code, "is no size" in errors) == (2, True)


def test_a_line_is_never_below_zero_and_says_when_it_is_a_guess():
    assert fit([(100, 10.0), (200, 5.0)]).slope == 0
    steep = fit([(100, 1.0), (200, 4.0)])
    assert (steep.fixed, steep.slope > 0) == (0.0, True)
    assert fit([(100, 10.0)], "StatisticsGen").guessed
    assert fit([(100, 2.0)], "StatisticsGen").slope == 0


@pytest.mark.parametrize("limited", ["machine", "container"])
def test_memory_that_does_not_do_is_told_with_the_knob_to_turn(
    machine, graftline, monkeypatch, limited
):
    for images in (300, 900):
        machine.run(images)
    memory, of_container = machine.folder / "meminfo", machine.folder / "memory.max"
    memory.write_text(f"MemTotal: {(400 if limited == 'machine' else 4000) * 1024} kB\n")
    of_container.write_text("max\n" if limited == "machine" else "400000000\n")
    monkeypatch.setattr(forecast, "_MEMORY", memory)
    monkeypatch.setattr(forecast, "_CONTAINERS_MEMORY", of_container)
    said = " ".join(graftline("--images", "1000")[1].split())
    assert "Memory does not do for Trainer: 1,000 MB are wanted, the machine has 400: lower" in said
