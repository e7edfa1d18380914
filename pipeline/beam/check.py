"""Whether Beam stages can run where the configuration says, asked before anything is begun.

The job server is asked first, for a second. Then a pipeline of one element goes the whole way: it
tells whether the job server can run this Beam's pipelines, whether workers start, whether they have
this code and see the project's folders. A stage on this machine needs none of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from graftline.components.progress import report
from graftline.pipeline.beam.config import STAGES, WITH_JOB_SERVER, BeamConfig, Stage
from graftline.pipeline.beam.failures import cause
from graftline.pipeline.beam.options import beam_options
from graftline.serving.errors import UserError

_ANSWER_WITHIN = 10.0  # seconds
_TOKEN = ".graftline-probe-"
# What a job server for it offers to set.
_OPTION_OF = {"flink": "flink_master", "spark": "spark_master"}
_SHARED = (
    "Stages on a cluster need a project, and a source of a drop, on a volume that all machines "
    "mount under the same path: move it there, or run with beam.runner=direct."
)


def check_beam(
    config: BeamConfig,
    folders: Sequence[Path],
    *,
    stages: Sequence[Stage] = STAGES,
    sources: Sequence[Path] = (),
) -> None:
    """Tries the way to the cluster, once for each runner that one of the stages has.

    Args:
        config: the section `beam`.
        folders: what workers read and write; made where they are not there yet.
        stages: those that are to run.
        sources: what workers only read.

    Raises:
        UserError: nothing answers at the address, or another service; the job server cannot run
            this Beam's pipelines; workers do not start, have other code, or do not see a folder;
            none has looked within `beam.probe_seconds`.
    """
    for runner, stage in {config.runner_of(stage): stage for stage in stages}.items():
        if runner == "direct":
            continue
        if runner in WITH_JOB_SERVER:
            _ask_job_server(config, runner)
        if config.probe:
            report(f"looking at the workers on {runner}")
            with _tokens(folders) as tokens:
                _probe(config, runner, stage, tokens, sources)


def _ask_job_server(config: BeamConfig, runner: str) -> None:
    """Asks a job server for its options.

    Raises:
        UserError: nothing, or something else, answers.
    """
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2 as api
    from apache_beam.portability.api import beam_job_api_pb2_grpc as services

    at = f"{config.job_server} (beam.job_server)"
    try:
        with grpc.insecure_channel(config.job_server) as channel:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_WITHIN)
            described = services.JobServiceStub(channel).DescribePipelineOptions(
                api.DescribePipelineOptionsRequest(), timeout=_ANSWER_WITHIN
            )
    except grpc.FutureTimeoutError as error:
        raise UserError(
            f"No job server of Beam answers at {at}. Start it, give the address that it listens "
            "on, or run on this machine with beam.runner=direct."
        ) from error
    except grpc.RpcError as error:
        raise UserError(
            f"What answers at {at} is no job server of Beam: {error.details()}. Its port is 8099 "
            "unless it was started with another --job-port."
        ) from error
    option = _OPTION_OF.get(runner)
    if option and option not in {option.name for option in described.options}:
        others = [other for other, name in _OPTION_OF.items() if name != option]
        raise UserError(
            f"The job server at {at} is not one for {runner}. Set beam.runner to {others[0]} or "
            f"portable, or start Beam's job server for {runner}."
        )


@contextmanager
def _tokens(folders: Sequence[Path]) -> Iterator[dict[str, str]]:
    """A file with a random content in each folder, gone at the end."""
    written: dict[str, str] = {}
    try:
        for folder in folders:
            token = secrets.token_hex(16)
            path = folder / f"{_TOKEN}{token[:8]}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(token)
            except OSError as error:
                raise UserError(f"{folder} cannot be written: {error.strerror}.") from error
            written[str(path)] = token
        yield written
    finally:
        for name in written:
            Path(name).unlink(missing_ok=True)


def _probe(
    config: BeamConfig,
    runner: str,
    stage: Stage,
    tokens: Mapping[str, str],
    sources: Sequence[Path],
) -> None:
    import apache_beam as beam
    from apache_beam.metrics.metric import MetricsFilter
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineState

    from graftline.pipeline.beam import probe

    own = probe.versions()
    question = probe.Question(
        tokens=dict(tokens),
        sources={str(path): int(path.stat().st_mtime) for path in sources},
        versions=own,
    )
    pipeline = beam.Pipeline(options=PipelineOptions(beam_options(config, stage)))
    _ = (
        pipeline
        | beam.Create([0], reshuffle=False)
        | beam.ParDo(probe.Look(msgspec.json.encode(question)))
    )
    try:
        result = pipeline.run()
        ended = PipelineState.is_terminal(result.wait_until_finish(config.probe_seconds * 1000))
        if ended:
            found = result.metrics().query(MetricsFilter().with_namespace(probe.NAMESPACE))
        else:
            with suppress(Exception):
                result.cancel()
    except Exception as error:
        said = " ".join(str(error).split())
        told = cause(said, config) or "A pipeline of one element failed there."
        raise UserError(f"Nothing runs on {runner} yet: {told} It said: {said[-400:]}") from error
    if not ended:
        raise UserError(_waited_for(config, runner))
    answers = {counter.key.metric.name for counter in found["counters"]}
    if probe.SEEN not in answers:
        raise UserError(
            f"A pipeline of one element ended on {runner}, and no worker has looked at it: the job "
            f"server at {config.job_server} does not run what it takes."
        )
    if differences := sorted(answers - {probe.SEEN}):
        raise UserError(" ".join(_told(one, runner, own) for one in differences[:1]))


def _waited_for(config: BeamConfig, runner: str) -> str:
    machines = {
        "flink": "that Flink's web interface shows TaskManagers, and one with a free task slot: "
        "they may not be registered, or other jobs may hold all slots",
        "dataflow": "in Dataflow's console whether its machines start",
    }.get(runner, "that the cluster has machines, and room for one more job")
    return (
        f"Nothing runs on {runner} yet: a pipeline of one element has waited there for "
        f"{config.probe_seconds:g} s (beam.probe_seconds) for a place to run or for its worker. "
        f"See {machines}; then see that worker's log. That job's end was asked for, and nothing "
        "else was begun."
    )


def _told(difference: str, runner: str, own: Mapping[str, str]) -> str:
    kind, what, found = difference.split("|", 2)
    if kind == "version":
        return (
            f"The workers on {runner} have {what} {found}, and here it is {own[what]}: what they "
            "make would not be what this code makes. Install the same there and here."
        )
    where = what if kind == "source" else str(Path(what).parent)
    return f"The workers on {runner} do not see {where} as this machine does: {found}. {_SHARED}"
