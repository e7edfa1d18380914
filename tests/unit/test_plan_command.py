"""`graftline plan`: what a drop will cost, learnt from the runs so far."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_metadata as mlmd
import msgspec
import pytest
from ml_metadata.proto import metadata_store_pb2

from graftline.components.ingest.spans import SUMMARY, RanOn, Summary
from graftline.components.trainer.config import TrainerConfig
from graftline.components.trainer.record import Best, Epoch, Phase, TrainingRecord
from graftline.pipeline import capacity
from graftline.pipeline.cli.main import main
from graftline.pipeline.config import Config, load_config, write_config
from graftline.pipeline.cost_model import fit
from graftline.pipeline.past_runs import TRAINER, ran_on
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.run_record import PUBLISHED, NodeRecord, RunRecord

BYTES, FEATURE = 10_000, 5_120
SPLITS = {"train": 0.8, "eval": 0.1, "test": 0.1}
Call = Callable[..., tuple[int, str, str]]


class Machine:
    """A project on a machine that takes the same time for the same work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: list[int] = []
        self.exported = ""
        self.slower: dict[str, float] = {}
        self.derived = self.computed = self.runs = 0
        write_config(Config(), folder / "graftline.yaml")
        self._store = _store(folder / "tfx" / "metadata.sqlite")

    def run(
        self,
        images: int,
        exported: str = "frozen",
        derived: int = 0,
        overrides: tuple[str, ...] = (),
    ) -> None:
        """Takes a drop in and trains on all so far; exports the weights of a phase.

        Features of so many images are derived from activations.
        """
        self.exported, self.derived = exported, derived
        self.sizes.append(images)
        self.computed = int(0.9 * images)
        span = self.folder / "spans" / f"span-{len(self.sizes)}" / "version-1"
        span.mkdir(parents=True)
        where = ran_on(load_config(self.folder / "graftline.yaml", overrides))["drop"]
        summary = _summary(images, self.drop(images), where)
        (span / SUMMARY).write_bytes(msgspec.json.encode(summary))
        self._train(images, overrides)

    def run_again(self) -> None:
        """Trains on all once more, with the features that are there."""
        self.computed = 0
        self._train(self.sizes[-1])

    def _train(self, images: int, overrides: tuple[str, ...] = ()) -> None:
        self.runs += 1
        window = tuple(SpanVersion(one + 1, 1) for one in range(len(self.sizes)))
        run = RunRecord(
            run_id=f"run-{self.runs:04d}",
            span=len(self.sizes),
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
        config = load_config(self.folder / "graftline.yaml", overrides)
        write_config(config, folder / "config.yaml")
        Plan(run_id=run.run_id, target=window[-1], window=window).write(folder)
        run.write(self.folder / "runs")
        _note_training(self._store, run.key, self.folder / "tfx" / f"{self.runs}", self.training())

    def keep_features(self) -> None:
        """Has the features of all images that were trained on so far, once each."""
        path = self.folder / "tfx" / "features" / "network" / "0.rows"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, int(0.9 * sum(self.sizes)) * FEATURE)

    def drop(self, images: int) -> float:
        """Seconds of a drop."""
        return self.slower.get("drop", 1.0) * (1.0 + 0.004 * images)

    def training(self) -> TrainingRecord:
        """What the training of the newest span did."""
        all_train = int(0.8 * sum(self.sizes))
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
            features_computed=self.computed,
            features_seconds=2 + 0.01 * self.computed if self.computed else 0.0,
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
        seconds = {
            "ImportExampleGen": 1.5 + 0.0005 * images,
            "StatisticsGen": 5 + 0.002 * images,
            "Trainer": 15 + training.features_seconds + training.derived_seconds + phases,
            "Evaluator": 4 + 0.01 * 0.1 * sum(self.sizes),
            "Pusher": 0.1,
        }
        return {name: self.slower.get(name, 1.0) * took for name, took in seconds.items()}

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


def _summary(images: int, seconds: float, where: RanOn) -> Summary:
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
        ran_on=where,
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
    # The spans and what ImportExampleGen makes of them lie on one.
    assert said.count("does not do: 2040000.0 GB are wanted") == 1
    assert "Most goes to drop: put paths.spans on another disk" in said
    assert "graftline gc" in said


def test_features_that_are_there_are_counted_once_however_many_runs_have_used_them(
    machine, planned
):
    for images in (300, 900):
        machine.run(images)
    machine.keep_features()
    before = planned("--images", "1000")["disk_bytes"]
    for _ in range(3):
        machine.run_again()
    assert planned("--images", "1000")["disk_bytes"] == before
    # In the span, as examples, and the features of those that are trained on.
    assert before == pytest.approx(2 * 1000 * BYTES + 900 * FEATURE, rel=0.05)


@pytest.mark.parametrize(
    ("folder", "advised"),
    [
        ("spans", "drop: put paths.spans on another disk"),
        ("tfx/features", "Trainer: lower trainer.feature_store_gb"),
    ],
)
def test_every_disk_of_the_project_is_asked_for_what_comes_to_it(
    machine, planned, disks, folder, advised
):
    disk = disks.mount("5m")
    (machine.folder / folder).symlink_to(disk)
    for images in (300, 900):
        machine.run(images)
    machine.keep_features()
    [said] = planned("--images", "5000")["advice"]
    assert "does not do" in said
    assert advised in said
    assert planned("--images", "10")["advice"] == []


def elsewhere(stage: str) -> tuple[str, ...]:
    """Puts a stage on another runner."""
    return f"beam.nodes={{{stage}: {{runner: flink}}}}", "beam.job_server=localhost:8099"


@pytest.mark.parametrize(("stage", "other"), [("drop", "Evaluator"), ("Evaluator", "drop")])
def test_what_a_runner_has_never_run_is_not_told_from_another(machine, planned, stage, other):
    for images in (300, 900):
        machine.run(images)
    said = planned("--images", "1000", *elsewhere(stage))
    stages = {one["name"]: one for one in said["stages"]}
    assert (stages[stage]["seconds"], stages[stage]["peak_mb"]) == (0, 0)
    assert stages[other]["seconds"] > 0
    assert [note for note in said["notes"] if "flink" in note] == [
        f"{stage}: never ran with runner flink so far, and what that takes is not counted."
    ]


@pytest.mark.parametrize("stage", ["drop", "Evaluator"])
def test_it_is_told_from_runs_with_the_same_runner_once_there_are(machine, planned, stage):
    def seconds(*overrides: str) -> float:
        stages = planned("--images", "1000", *overrides)["stages"]
        return next(one["seconds"] for one in stages if one["name"] == stage)

    for images in (300, 900):
        machine.run(images)
    machine.slower[stage] = 5.0
    for images in (300, 900):
        machine.run(images, overrides=elsewhere(stage))
    assert seconds(*elsewhere(stage)) > 4 * seconds()


@pytest.mark.parametrize(
    ("override", "stage"), [("beam.parallelism=3", "StatisticsGen"), ("trainer.workers=3", TRAINER)]
)
def test_memory_counts_every_process_and_the_one_that_waits_for_them(
    machine, planned, override, stage
):
    def peak(*overrides: str) -> float:
        stages = planned("--images", "1000", *overrides)["stages"]
        return next(one["peak_mb"] for one in stages if one["name"] == stage)

    for images in (300, 900):
        machine.run(images)
    assert [peak(), peak(override)] == pytest.approx([1000, 4000])
    assert any("never ran in as many parts" in note for note in planned(override)["notes"])
    # Once there are such runs, it is as they were measured.
    machine.run(900, overrides=(override,))
    assert peak(override) == pytest.approx(1000)


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
    monkeypatch.setattr(capacity, "_MEMORY", memory)
    monkeypatch.setattr(capacity, "_CONTAINERS_MEMORY", of_container)
    said = " ".join(graftline("--images", "1000")[1].split())
    assert "Memory does not do for Trainer: 1,000 MB are wanted, the machine has 400: lower" in said
