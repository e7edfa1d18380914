"""What a drop of so many images will cost: time, memory, disk and money, stage by stage.

From the records of the project's own runs on this machine. What drives a stage is not the same for
all: drop, statistics and features see the new images, training the whole window in every epoch, the
Evaluator the test split of the window. See docs/scale.md for the model.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from graftline.components.ingest.spans import HERE, RanOn, list_spans
from graftline.pipeline.capacity import Need, advice
from graftline.pipeline.coming_run import TRAINED, ComingRun
from graftline.pipeline.cost_model import Estimate, fit, fit_memory
from graftline.pipeline.past_runs import (
    TRAINER,
    PastRun,
    images_in,
    past_runs,
    ran_on,
)
from graftline.pipeline.project import Project
from graftline.pipeline.training_cost import TrainingCost
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError

# What reads every byte of the new images, so that larger files take longer.
_BY_BYTES = ("drop", "ImportExampleGen")
_OF_TEST = ("Evaluator", "ModelGate")
_ROW_OVERHEAD = 1.02  # of TFRecords over the images in them


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


class _Seen(msgspec.Struct, frozen=True):
    """A stage of a past run or drop: the amount of what drives it, and what it took."""

    amount: float
    seconds: float
    peak_mb: float
    ran_on: RanOn
    same_network: bool = True

    @staticmethod
    def of(past: PastRun, node: str) -> _Seen:
        """A node of a run."""
        amount = past.judged if node in _OF_TEST else past.new
        where = past.ran_on.get(node, HERE)
        return _Seen(amount, *past.nodes[node], where, past.same_network)


class _Forecast:
    def __init__(self, project: Project, images: int | None, bytes_per_image: float | None) -> None:
        self._project = project
        past = list(past_runs(project))
        # A cluster's machines are others; they are asked where there is nothing else.
        self._past = [run for run in past if not run.cluster] or past
        if not self._past:
            raise UserError(
                "There is no run to learn from yet. Drop a first part of the images, some hundred "
                "or a thousand, and `graftline run`: then the rest can be planned."
            )
        self._drops = [span.summary for span in list_spans(project.spans)]
        self._known_size = sum(drop.bytes for drop in self._drops) / max(
            1, sum(drop.images for drop in self._drops)
        )
        self._coming = ComingRun(project, images or self._drops[-1].images)
        self._size = bytes_per_image or self._known_size
        self._ran_on = ran_on(project.config)
        self._never_there: dict[str, list[str]] = {}
        self._otherwise_divided: list[str] = []
        self._notes: list[str] = []

    def make(self) -> Forecast:
        """All stages, their sum, and whether it fits."""
        stages = list(self._stages())
        needs = [need for _, need in stages]
        prices = self._project.config.prices
        # The machine as a whole may be slower than it was: that part of the error is common.
        total = sum((seconds for seconds, _ in stages), Estimate(0.0))
        common = 0.1 * total.value
        made = tuple(
            Stage(
                name=need.stage,
                seconds=seconds.value,
                seconds_low=seconds.low,
                seconds_high=seconds.high,
                peak_mb=need.peak_mb,
                disk_bytes=need.disk_bytes,
                money=prices.of(need.stage, seconds.value),
            )
            for seconds, need in stages
        )
        disk = sum(need.disk_bytes for need in needs)
        self._note_basis()
        return Forecast(
            images=self._coming.images,
            bytes_per_image=self._size,
            runs=len(self._past),
            seconds=total.value,
            seconds_low=max(0.0, total.low - common),
            seconds_high=total.high + common,
            peak_mb=max(need.peak_mb for need in needs),
            disk_bytes=disk,
            money=sum(stage.money for stage in made),
            money_per_month=disk / 1e9 * prices.gigabyte_month,
            currency=prices.currency,
            stages=made,
            notes=tuple(self._notes),
            advice=tuple(advice(needs)),
        )

    def _stages(self) -> Iterator[tuple[Estimate, Need]]:
        """What each takes and wants."""
        drops = [_Seen(d.images, d.seconds, d.peak_mb, d.ran_on) for d in self._drops if d.seconds]
        if drops:
            yield self._stage("drop", drops, self._coming.images)
        start = [past.start for past in self._past]
        yield fit([(0.0, seconds) for seconds in start]).at(0), self._need("start", 0.0)
        for name in dict.fromkeys(name for past in self._past for name in past.nodes):
            seen = [_Seen.of(past, name) for past in self._past if name in past.nodes]
            amount = self._coming.judged() if name in _OF_TEST else self._coming.images
            seconds, need = self._stage(name, seen, amount)
            if name == TRAINER:
                training = TrainingCost(self._project.config.trainer, self._past, self._coming)
                seconds = training.seconds()
                self._notes += training.notes
            yield seconds, need

    def _stage(self, name: str, seen: Sequence[_Seen], amount: float) -> tuple[Estimate, Need]:
        """What a stage takes and wants for an amount of what drives it."""
        wanted = self._ran_on.get(name, HERE)
        there = [one for one in seen if one.ran_on.runner == wanted.runner]
        if not there:
            self._never_there.setdefault(wanted.runner, []).append(name)
            return Estimate(0.0), self._need(name, 0.0)
        alike = [one for one in there if one.ran_on == wanted]
        if not alike:
            self._otherwise_divided.append(name)
        known = alike or there
        if name in _OF_TEST:
            known = [one for one in known if one.same_network] or known
        line = fit([(one.amount, one.seconds) for one in known], name)
        peaks = [
            (one.amount, one.peak_mb * _processes(wanted) / _processes(one.ran_on))
            for one in known
            if one.peak_mb
        ]
        return line.at(amount, self._larger(name)), self._need(name, _highest(peaks, amount))

    def _larger(self, name: str) -> float:
        """How much longer an image takes than those so far."""
        return self._size / self._known_size if name in _BY_BYTES else 1.0

    def _need(self, name: str, peak: float) -> Need:
        return Need(stage=name, peak_mb=peak, disk=self._disk.get(name, {}))

    @functools.cached_property
    def _disk(self) -> dict[str, dict[Path, float]]:
        """Bytes that stay, by stage and by the folder that it writes them to."""
        project = self._project
        drop = self._coming.images * self._size * _ROW_OVERHEAD
        model = self._model()
        return {
            "drop": {project.spans: drop},
            "ImportExampleGen": {project.artifacts: drop},
            TRAINER: {project.features: self._features(), project.artifacts: model},
            "Pusher": {project.base_path: model},
        }

    def _features(self) -> float:
        """Bytes of stored features that come on top, up to the bound."""
        bound = self._project.config.trainer.feature_store_gb * 1e9
        stored = _bytes_below(self._project.features)
        # Those of an image are there once, however many runs have trained on it.
        trained = {(span.number, span.version): span for p in self._past for span in p.window}
        known = images_in(list(trained.values()), TRAINED)
        grown = stored / max(1, known) * self._coming.new(TRAINED)
        return max(0.0, min(grown, bound - stored))

    def _model(self) -> float:
        base = BasePath(self._project.base_path)
        return float(_bytes_below(base.folder())) if base.in_service() is not None else 0.0

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
        elif self._coming.images > 4 * sizes[-1]:
            self._notes.append(
                f"The largest drop so far had {sizes[-1]} images: this reaches far beyond it."
            )
        for runner, names in self._never_there.items():
            self._notes.append(
                f"{', '.join(names)}: never ran with runner {runner} so far, and what that takes "
                "is not counted."
            )
        if self._otherwise_divided:
            self._notes.append(
                f"{', '.join(self._otherwise_divided)}: never ran in as many parts so far. Time is "
                "told from runs in other numbers of them, memory as if every process wanted what "
                "one did."
            )
        if not any(past.same_network for past in self._past):
            self._notes.append(
                "No run so far had this configuration of trainer and image: training and "
                "evaluation are told from runs with another."
            )


def _highest(peaks: Sequence[tuple[float, float]], amount: float) -> float:
    """The highest memory so far; growth with the amount is added where the runs show it."""
    if not peaks:
        return 0.0
    return max(max(peak for _, peak in peaks), fit_memory(peaks).at(amount).value)


def _processes(ran_on: RanOn) -> int:
    """How many processes have memory of their own; beside several the command's waits."""
    return ran_on.processes + 1 if ran_on.processes > 1 else 1


def _bytes_below(folder: Path) -> int:
    """Bytes of all files of a folder, which a run under way may be adding to or removing from."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total
