"""How long a training takes, from the trainings so far.

Loading and export; the features of new images, or of all where a version is started from that has a
backbone of its own; then every phase over the whole window.
"""

from __future__ import annotations

from collections.abc import Sequence

from graftline.components.trainer.config import PhaseConfig, TrainerConfig
from graftline.components.trainer.record import Phase, TrainingRecord
from graftline.pipeline.coming_run import TRAINED, ComingRun
from graftline.pipeline.cost_model import Estimate, fit
from graftline.pipeline.past_runs import TRAINER, PastRun, same_network

_UP_OF_EPOCH = 1 / 3


class TrainingCost:
    """What a coming run's training takes.

    Attributes:
        notes: what it rests on, in sentences; whole once `seconds` has been asked.
    """

    def __init__(self, config: TrainerConfig, past: Sequence[PastRun], coming: ComingRun) -> None:
        """Takes the section `trainer`, the runs so far, the newest first, and the coming one."""
        self.notes: list[str] = []
        self._config = config
        self._past = past
        self._coming = coming

    def seconds(self) -> Estimate:
        """Of the whole node."""
        train = self._coming.window(("train",))
        runs = same_network([past for past in self._past if past.training])
        if not runs:
            return fit(
                [(p.train, p.nodes[TRAINER][0]) for p in self._past if TRAINER in p.nodes]
            ).at(train)
        trainings = [past.training for past in runs if past.training]
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
        total = fit(loading, "loading").at(train)
        made = [(t.features_computed, t.features_seconds) for t in trainings if t.features_computed]
        if made:
            total += fit(made, "features").at(self._to_compute(trainings))
        if self._starts_trained:
            total += self._derived(runs)
        for phase in self._config.phases:
            past_phases = _like(phase, runs)
            if not past_phases:
                self.notes.append(
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
        return self._config.warm_start and self._past[0].trained_backbone

    def _to_compute(self, trainings: Sequence[TrainingRecord]) -> float:
        """Images that go through all that does not train: new ones, or all where that has changed.

        Where an upper part of it has changed, stored activations take the place of images.
        """
        if self._starts_trained and not self._past[0].stored_activations:
            return self._coming.window(TRAINED)
        most = max(t.features_computed / max(1, t.train_images + t.eval_images) for t in trainings)
        return self._coming.new(TRAINED) * max(1.0, most)

    def _derived(self, runs: Sequence[PastRun]) -> Estimate:
        """Seconds for the features of the whole window, from activations where they are stored."""
        self.notes.append(
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
        return fit(known).at(self._coming.window(TRAINED)) if known else Estimate(0.0)


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
