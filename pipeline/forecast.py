"""What a drop of so many images will cost: time, memory, disk and money, stage by stage.

From the records of the project's own runs on this machine. What drives a stage is not the same for
all: drop, statistics and features see the new images, training the whole window in every epoch, the
Evaluator the test split of the window. See docs/scale.md for the model.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from graftline.components.ingest.spans import list_spans
from graftline.components.trainer.config import PhaseConfig
from graftline.components.trainer.record import Phase, TrainingRecord
from graftline.pipeline.cost_model import Estimate, fit, fit_memory
from graftline.pipeline.past_runs import TRAINER, PastRun, images_in, past_runs
from graftline.pipeline.project import Project
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError

_SPLITS_TRAINED = ("train", "eval")
# What reads every byte of the new images, so that larger files take longer.
_BY_BYTES = ("drop", "ImportExampleGen")
_OF_TEST = ("Evaluator", "ModelGate")
_ROW_OVERHEAD = 1.02  # of TFRecords over the images in them
_KNOBS = {
    "drop": "lower drop.max_pixels",
    TRAINER: "lower trainer.batch_size or image.size",
}
_UP_OF_EPOCH = 1 / 3
# Of the machine, in KiB in the first line; of the container that this runs in, in bytes.
_MEMORY, _CONTAINERS_MEMORY = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
_CLUSTER = "let a cluster run the Beam stages (beam.runner)"


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage will cost.

    Attributes:
        name: `drop`, a node of the pipeline, or `start`: imports and all that is between nodes.
        seconds, seconds_low, seconds_high: time, and the bounds of its error.
        peak_mb: memory of the process; 0: never measured.
        disk_bytes: what stays on disk.
        money: by the prices of the configuration.
    """

    name: str
    seconds: float
    seconds_low: float
    seconds_high: float
    peak_mb: float
    disk_bytes: float
    money: float


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What a drop will cost.

    Attributes:
        images, bytes_per_image: of the drop.
        runs: from how many runs it was learnt.
        seconds, seconds_low, seconds_high, peak_mb, disk_bytes, money: of all stages.
        money_per_month: of the disk.
        currency: of both.
        stages: in their order.
        notes: what it rests on, in sentences.
        advice: what to do about what does not fit, in sentences; empty: it fits.
    """

    images: int
    bytes_per_image: float
    runs: int
    seconds: float
    seconds_low: float
    seconds_high: float
    peak_mb: float
    disk_bytes: float
    money: float
    money_per_month: float
    currency: str
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]
    advice: tuple[str, ...]


def forecast(project: Project, images: int | None, bytes_per_image: float | None) -> Forecast:
    """What a drop, and the run on it, will cost with this configuration.

    Args:
        project: the project.
        images: of the drop; None: as many as the newest drop had.
        bytes_per_image: mean size of a file; None: as in the drops so far.

    Raises:
        UserError: there is no run yet to learn from.
    """
    return _Forecast(project, images, bytes_per_image).make()


class _Forecast:
    def __init__(self, project: Project, images: int | None, bytes_per_image: float | None) -> None:
        self._project = project
        self._spans = list_spans(project.spans)
        past = list(past_runs(project))
        # A cluster's machines are others; they are asked where there is nothing else.
        self._past = [run for run in past if not run.cluster] or past
        if not self._past:
            raise UserError(
                "There is no run to learn from yet. Drop a first part of the images, some hundred "
                "or a thousand, and `graftline run`: then the rest can be planned."
            )
        summaries = [span.summary for span in self._spans]
        self._known_size = sum(s.bytes for s in summaries) / max(
            1, sum(s.images for s in summaries)
        )
        self._images = images or summaries[-1].images
        self._size = bytes_per_image or self._known_size
        self._notes: list[str] = []

    def make(self) -> Forecast:
        """All stages, their sum, and whether it fits."""
        stages = list(self._stages())
        prices = self._project.config.prices
        # The machine as a whole may be slower than it was: that part of the error is common.
        total = sum((seconds for _, seconds, _, _ in stages), Estimate(0.0))
        made = tuple(
            Stage(
                name=name,
                seconds=seconds.value,
                seconds_low=seconds.low,
                seconds_high=seconds.high,
                peak_mb=peak,
                disk_bytes=disk,
                money=prices.of(name, seconds.value),
            )
            for name, seconds, peak, disk in stages
        )
        common = 0.1 * total.value
        disk = sum(stage.disk_bytes for stage in made)
        self._note_basis()
        return Forecast(
            images=self._images,
            bytes_per_image=self._size,
            runs=len(self._past),
            seconds=total.value,
            seconds_low=max(0.0, total.low - common),
            seconds_high=total.high + common,
            peak_mb=max(stage.peak_mb for stage in made),
            disk_bytes=disk,
            money=sum(stage.money for stage in made),
            money_per_month=disk / 1e9 * prices.gigabyte_month,
            currency=prices.currency,
            stages=made,
            notes=tuple(self._notes),
            advice=tuple(self._advice(made, disk)),
        )

    def _stages(self) -> Iterator[tuple[str, Estimate, float, float]]:
        drops = [s for s in (span.summary for span in self._spans) if s.seconds]
        bytes_of_drop = self._images * self._size * _ROW_OVERHEAD
        larger = self._size / self._known_size
        if drops:
            line = fit([(s.images, s.seconds) for s in drops], "drop")
            peak = self._highest([(s.images, s.peak_mb) for s in drops])
            yield "drop", line.at(self._images, larger), peak, bytes_of_drop
        start = [past.start for past in self._past]
        yield "start", fit([(0.0, seconds) for seconds in start]).at(0), 0.0, 0.0
        for name in dict.fromkeys(name for past in self._past for name in past.nodes):
            runs = [past for past in self._past if name in past.nodes]
            if name == TRAINER:
                yield name, self._trainer(), self._peak(name), self._features() + self._model()
                continue
            amount = self._judged() if name in _OF_TEST else float(self._images)
            amount_of: Callable[[PastRun], float] = (
                (lambda past: past.judged) if name in _OF_TEST else (lambda past: past.new)
            )
            if name in _OF_TEST:
                runs = _same_network(runs)
            line = fit([(amount_of(past), past.nodes[name][0]) for past in runs], name)
            factor = larger if name in _BY_BYTES else 1.0
            disk = {"ImportExampleGen": bytes_of_drop, "Pusher": self._model()}.get(name, 0.0)
            yield name, line.at(amount, factor), self._peak(name), disk

    def _trainer(self) -> Estimate:
        """Loading and export; the features of new images; every phase over the whole window."""
        runs = _same_network([past for past in self._past if past.training])
        if not runs:
            return fit(
                [(p.train, p.nodes[TRAINER][0]) for p in self._past if TRAINER in p.nodes]
            ).at(self._window(("train",)))
        trainings = [past.training for past in runs if past.training]
        phases = self._project.config.trainer.phases
        # Which images there are, and whether their stored features are whole, is read as well.
        loading = [
            (
                float(p.train),
                max(
                    0.0,
                    p.nodes[TRAINER][0]
                    - t.features_seconds
                    - t.derived_seconds
                    - sum(f.seconds for f in t.phases),
                ),
            )
            for p, t in zip(runs, trainings, strict=True)
        ]
        train = self._window(("train",))
        total = fit(loading, "loading").at(train)
        made = [(t.features_computed, t.features_seconds) for t in trainings if t.features_computed]
        if made:
            total += fit(made, "features").at(self._to_compute(trainings))
        if self._starts_trained:
            total += self._derived(runs)
        for phase in phases:
            past_phases = _like(phase, runs)
            if not past_phases:
                self._notes.append(
                    f"No run has had a phase {phase.name}: what it takes is not counted."
                )
                continue
            line = fit(
                [(images * len(f.epochs), f.seconds) for images, f in past_phases], "training"
            )
            done = [min(phase.epochs, len(f.epochs)) for _, f in past_phases]
            epochs = sum(done) / len(done)
            usual = line.at(train * epochs)
            # A phase ends when the error on the eval split falls no more.
            range_of = line.at(train * max(done)).value - line.at(train * min(done)).value
            total += Estimate(usual.value, max(usual.error, range_of / 2))
        return total

    @property
    def _starts_trained(self) -> bool:
        """Whether the backbone that training starts with is not the one of the stored features."""
        return self._project.config.trainer.warm_start and self._past[0].trained_backbone

    def _to_compute(self, trainings: Sequence[TrainingRecord]) -> float:
        """Images that go through all that does not train: new ones, or all where that has changed.

        Where an upper part of it has changed, stored activations take the place of images.
        """
        if self._starts_trained and not self._past[0].stored_activations:
            return self._window(_SPLITS_TRAINED)
        most = max(t.features_computed / max(1, t.train_images + t.eval_images) for t in trainings)
        return self._images * self._share(_SPLITS_TRAINED) * max(1.0, most)

    def _derived(self, runs: Sequence[PastRun]) -> Estimate:
        """Seconds for the features of the whole window, from activations where they are stored."""
        self._notes.append(
            "The version that trainer.warm_start begins with has a backbone of its own, so "
            "that features are computed for the whole window, once: a phase that trains the "
            "head alone leaves them as they are."
        )
        if not self._past[0].stored_activations:
            return Estimate(0.0)
        trainings = [past.training for past in runs if past.training]
        known = [(t.features_derived, t.derived_seconds) for t in trainings if t.features_derived]
        # Without one: an epoch of training goes the same way up, and then down for the gradients.
        known = known or [
            (t.train_images * len(phase.epochs), phase.seconds * _UP_OF_EPOCH)
            for past, t in zip(runs, trainings, strict=True)
            for phase in t.phases
            if phase.name not in past.head_alone
        ]
        return fit(known).at(self._window(_SPLITS_TRAINED)) if known else Estimate(0.0)

    def _features(self) -> float:
        """Bytes of stored features that come on top, up to the bound."""
        bound = self._project.config.trainer.feature_store_gb * 1e9
        stored = _bytes_below(self._project.features)
        known = sum(past.new for past in self._past)
        grown = stored / max(1, known) * self._images
        return max(0.0, min(grown, bound - stored))

    def _model(self) -> float:
        base = BasePath(self._project.base_path)
        return float(_bytes_below(base.folder())) if base.in_service() is not None else 0.0

    def _peak(self, name: str) -> float:
        return self._highest([(p.new, p.nodes.get(name, (0, 0))[1]) for p in self._past])

    def _highest(self, peaks: Sequence[tuple[int, int]]) -> float:
        """The highest memory so far; growth with the images is added where the runs show it."""
        points = [(images, float(peak)) for images, peak in peaks if peak]
        if not points:
            return 0.0
        return max(max(peak for _, peak in points), fit_memory(points).at(self._images).value)

    def _judged(self) -> float:
        models = 2 if BasePath(self._project.base_path).in_service() is not None else 1
        return models * self._window(("test",))

    def _window(self, splits: Sequence[str]) -> float:
        """Images of some splits in the window of the run on the coming drop."""
        newest = list({span.number: span for span in self._spans}.values())
        last = self._project.config.window.last
        kept = newest if last is None else newest[len(newest) - min(last - 1, len(newest)) :]
        return images_in(kept, splits) + self._images * self._share(splits)

    def _share(self, splits: Sequence[str]) -> float:
        """The share of some splits in a drop."""
        drop = self._project.config.drop
        shares = {"eval": drop.eval_share, "test": drop.test_share}
        shares["train"] = 1 - drop.eval_share - drop.test_share
        return sum(shares[split] for split in splits)

    def _note_basis(self) -> None:
        if self._past[0].cluster:
            self._notes.append("All runs so far were on a cluster: this is told for its machines.")
        sizes = sorted({past.new for past in self._past})
        if len(sizes) == 1:
            self._notes.append(
                f"All runs so far were on drops of {sizes[0]} images: how much of their time does "
                "not grow with the images is taken from a table, not measured. A run on a drop of "
                "another size makes this better."
            )
        elif self._images > 4 * sizes[-1]:
            self._notes.append(
                f"The largest drop so far had {sizes[-1]} images: this reaches far beyond it."
            )
        if not any(past.same_network for past in self._past):
            self._notes.append(
                "No run so far had this configuration of trainer and image: training and "
                "evaluation are told from runs with another."
            )

    def _advice(self, stages: Sequence[Stage], disk: float) -> Iterator[str]:
        free = shutil.disk_usage(_existing(self._project.artifacts)).free
        if disk > free:
            largest = max(stages, key=lambda stage: stage.disk_bytes)
            knob = {
                TRAINER: "lower trainer.feature_store_gb",
                "ImportExampleGen": "set window.last",
            }.get(largest.name, "put paths.spans on another disk")
            yield (
                f"The disk does not do: {disk / 1e9:.1f} GB are wanted, {free / 1e9:.1f} are free. "
                f"Most goes to {largest.name}: {knob}; and free what nothing needs with "
                "`graftline gc`."
            )
        memory = _memory_mb()
        for stage in stages:
            if memory and stage.peak_mb > memory:
                knob = _KNOBS.get(stage.name, _CLUSTER)
                yield (
                    f"Memory does not do for {stage.name}: {stage.peak_mb:,.0f} MB are wanted, the "
                    f"machine has {memory:,.0f}: {knob}."
                )


def _like(phase: PhaseConfig, runs: Sequence[PastRun]) -> list[tuple[int, Phase]]:
    """Past phases of the same name, else such as train the head alone where this one does.

    Returns:
        Each with how many images it trained on.
    """
    trainings = [(past, past.training) for past in runs if past.training]
    phases = [(past, t.train_images, one) for past, t in trainings for one in t.phases]
    named = [(images, one) for _, images, one in phases if one.name == phase.name]
    if named or phase.fraction or phase.blocks:
        return named
    return [(images, one) for past, images, one in phases if one.name in past.head_alone]


def _same_network(runs: list[PastRun]) -> list[PastRun]:
    """Those with the configuration that is planned with, else all."""
    return [past for past in runs if past.same_network] or runs


def _bytes_below(folder: Path) -> int:
    """Bytes of all files of a folder, which a run under way may be adding to or removing from."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _memory_mb() -> float:
    """All memory of this machine, or of this container; 0 where the system does not tell."""
    try:
        lines = _MEMORY.read_text("ascii").splitlines()
    except OSError:
        return 0.0
    found = int(lines[0].split()[1]) / 1024
    with contextlib.suppress(OSError, ValueError):  # `max` where nothing limits it
        found = min(found, int(_CONTAINERS_MEMORY.read_text("ascii")) / 1e6)
    return found
