"""What a project's runs so far took, for those who want to learn from it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence

import msgspec

from graftline.components.ingest.spans import RanOn, Span, find_span
from graftline.components.trainer.record import TrainingRecord
from graftline.pipeline.beam.config import STAGES
from graftline.pipeline.comparison import ComparedRun, compared_runs, flatten
from graftline.pipeline.config import Config, to_tree
from graftline.pipeline.plan import FILE_NAME as PLAN_NAME
from graftline.pipeline.plan import Plan
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError

TRAINER = "Trainer"
# What makes one network another, and what of it does not.
_SAME_NETWORK = ("trainer.", "image.")
_WITHOUT_EFFECT = ("trainer.feature_store_gb", "trainer.seed", "trainer.warm_start")


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run to learn from.

    Attributes:
        nodes: seconds and peak memory of every node that was executed.
        ran_on: where those did that may run elsewhere, or in several processes.
        window: the spans that it trained on.
        new: images of the last of them, which it took in.
        judged: test images of its window, times the models that were evaluated.
        train: training images of its window.
        training: what its training did.
        start: seconds outside of nodes.
        same_network: whether it was configured as is planned with.
        head_alone: names of its phases that trained the head alone.
        cluster: whether it ran on a cluster, and not on this machine.
        trained_backbone: whether the weights that it exported are its own also below the head.
        stored_activations: whether a phase has stored what lies below the upper part that it
            trained.
    """

    nodes: dict[str, tuple[float, int]]
    ran_on: dict[str, RanOn]
    window: tuple[Span, ...]
    new: int
    judged: int
    train: int
    training: TrainingRecord | None
    start: float
    same_network: bool
    head_alone: frozenset[str]
    cluster: bool
    trained_backbone: bool
    stored_activations: bool


def past_runs(project: Project) -> Iterator[PastRun]:
    """Runs that came to the end of their training, on spans that are still there."""
    wanted = _network(flatten(to_tree(project.config)))
    for run in compared_runs(project):
        folder = project.runs / run.record.run_id
        if run.record.tunes or not (folder / PLAN_NAME).exists():
            continue
        plan = Plan.read(folder)
        try:
            window = [find_span(project.spans, one.span, one.version) for one in plan.window]
        except UserError:
            continue
        nodes = {
            node.id: (node.seconds, node.peak_mb)
            for node in run.record.nodes
            if node.state == "done"
        }
        if TRAINER not in nodes:
            continue
        yield PastRun(
            nodes=nodes,
            ran_on=ran_on(run.config) if run.config else {},
            window=tuple(window),
            new=images_in(window[-1:], ("train", "eval", "test")),
            judged=images_in(window, ("test",)) * (2 if plan.baseline else 1),
            train=images_in(window, ("train",)),
            training=run.training,
            start=_outside(run),
            same_network=_network(run.configuration) == wanted,
            cluster=bool(run.record.cluster),
            head_alone=frozenset(_head_alone(run)),
            trained_backbone=run.training is not None
            and run.training.exported.phase not in set(_head_alone(run)),
            stored_activations=_stores_activations(run),
        )


def ran_on(config: Config) -> dict[str, RanOn]:
    """Where the stages of Beam run with a configuration, and in how many processes the Trainer."""
    beam = config.beam
    found = {TRAINER: RanOn(parallelism=config.trainer.workers)}
    for stage in STAGES:
        runner = beam.runner_of(stage)
        alone = 1 if runner == "direct" else None
        found[stage] = RanOn(runner=runner, parallelism=beam.parallelism_of(stage) or alone)
    return found


def _stores_activations(run: ComparedRun) -> bool:
    head_alone = set(_head_alone(run))
    return bool(run.configuration.get("trainer.feature_store_gb")) and any(
        phase.name not in head_alone
        and run.configuration.get(f"trainer.phases.{phase.name}.fraction") != 1.0
        for phase in (run.training.phases if run.training else ())
    )


def _head_alone(run: ComparedRun) -> Iterator[str]:
    for phase in run.training.phases if run.training else ():
        key = f"trainer.phases.{phase.name}"
        if not (run.configuration.get(f"{key}.fraction") or run.configuration.get(f"{key}.blocks")):
            yield phase.name


def _outside(run: ComparedRun) -> float:
    """Seconds of a run that no node took."""
    began, ended = run.record.started, run.record.finished
    if not ended:
        return 0.0
    whole = datetime.datetime.fromisoformat(ended) - datetime.datetime.fromisoformat(began)
    return max(0.0, whole.total_seconds() - run.record.seconds)


def _network(configuration: dict[str, object]) -> dict[str, object]:
    return {
        key: value
        for key, value in configuration.items()
        if key.startswith(_SAME_NETWORK)
        and not key.startswith(("trainer.phases", "trainer.tensorboard"))
        and key not in _WITHOUT_EFFECT
    }


def same_network(runs: list[PastRun]) -> list[PastRun]:
    """Those with the configuration that is planned with, else all."""
    return [past for past in runs if past.same_network] or runs


def images_in(spans: Sequence[Span], splits: Sequence[str]) -> int:
    """How many images of some splits some spans have."""
    return sum(span.summary.per_split[split] for span in spans for split in splits)
