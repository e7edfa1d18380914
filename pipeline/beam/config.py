"""What a user can set about Beam: the section `beam`.

No stage of ours knows on which runner it runs; `options` turns this section into what Beam's
command line takes.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

Runner = Literal["direct", "flink", "spark", "dataflow", "portable"]
Stage = Literal[
    "drop", "ImportExampleGen", "StatisticsGen", "Transform", "Evaluator", "predict_batch"
]

STAGES: tuple[Stage, ...] = get_args(Stage)
# Those that are nodes of the pipeline.
NODES = tuple(stage for stage in STAGES if stage not in ("drop", "predict_batch"))
# Those that are reached through a job server of Beam.
WITH_JOB_SERVER = ("flink", "spark", "portable")
# Any of them says where Dataflow's machines get the code from.
CODE_OPTIONS = ("--sdk_container_image", "--setup_file", "--requirements_file", "--extra_package")

_ADDRESS = r"^([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}$"
_OPTION = r"^--[A-Za-z][A-Za-z0-9_-]*(=[\s\S]*)?$"

Parallelism = Annotated[int, Meta(ge=1, le=10_000)] | None
Options = tuple[Annotated[str, Meta(pattern=_OPTION)], ...]


class WorkersConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a cluster's machines start the workers; all have graftline installed."""

    start: Annotated[
        Literal["process", "external", "docker", "loopback"],
        Meta(
            description="process: each machine runs the command; external: a worker pool stands "
            "beside each (a sidecar); docker: each runs the image; loopback: within the command on "
            "this machine, for trials. Dataflow always takes the image."
        ),
    ] = "process"
    command: Annotated[
        str,
        Meta(min_length=1, description="For process: what starts a worker, found on each machine."),
    ] = "graftline-beam-worker"
    pool: Annotated[
        str,
        Meta(pattern=_ADDRESS, description="For external: where each machine finds its own pool."),
    ] = "localhost:50000"
    image: Annotated[
        str, Meta(description="For docker and Dataflow: the image that has graftline installed.")
    ] = ""


class StageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one stage has of its own; what is left out is as for all."""

    runner: Annotated[Runner | None, Meta(description="In place of beam.runner.")] = None
    parallelism: Annotated[Parallelism, Meta(description="In place of beam.parallelism.")] = None
    options: Annotated[Options, Meta(description="After those of beam.options.")] = ()


class BeamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Beam stages run: drop, ExampleGen, statistics, Transform, Evaluator."""

    runner: Annotated[
        Runner,
        Meta(
            description="direct: this machine; flink or spark: such a cluster, through Beam's "
            "job server; dataflow: Google's; portable: whatever is behind a job server."
        ),
    ] = "direct"
    parallelism: Annotated[
        Parallelism,
        Meta(
            description="Into how many parts each stage is divided: processes of this machine "
            "(direct), task slots (flink), machines at most (dataflow). null: 1 on this machine, "
            "else what the cluster is set to."
        ),
    ] = None
    job_server: Annotated[
        str,
        Meta(
            pattern=f"^$|{_ADDRESS}",
            description="host:port of Beam's job server; for flink, spark and portable.",
        ),
    ] = ""
    artifact_server: Annotated[
        str,
        Meta(
            pattern=f"^$|{_ADDRESS}",
            description="host:port at which the job server takes files; empty: where it says.",
        ),
    ] = ""
    workers: WorkersConfig = WorkersConfig()
    probe: Annotated[
        bool,
        Meta(
            description="Before a run or a drop on a cluster a pipeline of one element tells "
            "whether workers start, have this code and see the project's folders."
        ),
    ] = True
    probe_seconds: Annotated[
        float,
        Meta(ge=1, le=86_400, description="In which that pipeline has to end; machines may start."),
    ] = 600.0
    options: Annotated[
        Options, Meta(description="More options of Beam, word for word; they win over the above.")
    ] = ()
    nodes: Annotated[
        dict[str, StageConfig],
        Meta(description=f"Of their own, by stage: {', '.join(STAGES)}."),
    ] = {}

    def __post_init__(self) -> None:
        """Refuses what cannot run.

        Raises:
            ValueError: with what is missing or does not go together.
        """
        unknown = sorted(set(self.nodes) - set(STAGES))
        if unknown:
            raise ValueError(
                f"nodes: {unknown[0]} is no stage that Beam runs; those are {', '.join(STAGES)}"
            )
        for stage in STAGES:
            self._check(stage)

    def _check(self, stage: Stage) -> None:
        runner = self.runner_of(stage)
        told = f"runner {runner}" + ("" if runner == self.runner else f" of {stage}")
        own = self.nodes.get(stage, StageConfig())
        options = (*self.options, *own.options)
        if runner in WITH_JOB_SERVER and not self.job_server:
            raise ValueError(f"{told} wants job_server, the host:port of Beam's job server")
        if runner in WITH_JOB_SERVER and self.workers.start == "docker" and not self.workers.image:
            raise ValueError(f"{told} with workers.start docker wants workers.image")
        if runner == "dataflow" and not (self.workers.image or _given(options, CODE_OPTIONS)):
            raise ValueError(
                f"{told} wants workers.image, from which its machines get the code, or one of the "
                f"options {', '.join(CODE_OPTIONS)}"
            )
        if runner in ("spark", "portable") and own.parallelism:
            raise ValueError(f"{told} takes its parallelism from the cluster, not from nodes")
        if runner != "direct" and _given(options, ("--runner",)):
            raise ValueError(f"{told} and an option --runner contradict each other; give one")

    def runner_of(self, node: str) -> Runner:
        """Where a stage runs; a node that Beam has no part in runs on this machine."""
        if node not in STAGES:
            return "direct"
        own = self.nodes.get(node)
        return (own.runner if own else None) or self.runner

    def parallelism_of(self, stage: Stage) -> int | None:
        """Into how many parts a stage is divided; None: as the runner sees fit."""
        own = self.nodes.get(stage)
        return (own.parallelism if own else None) or self.parallelism

    def processes_of(self, stage: Stage) -> int:
        """How many processes of this machine divide a stage; 1: it runs in the command's own."""
        return (self.parallelism_of(stage) or 1) if self.runner_of(stage) == "direct" else 1


def _given(options: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return any(re.split("=", option, maxsplit=1)[0] in names for option in options)
