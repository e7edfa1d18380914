"""The section `beam` as the options of Beam's own command line, for one stage."""

from __future__ import annotations

import msgspec

from graftline.pipeline.beam.config import WITH_JOB_SERVER, BeamConfig, Stage, StageConfig

# What DirectRunner would choose, seconds later.
_DIRECT = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_PROCESSES = "graftline.pipeline.beam.processes.ProcessesRunner"
_CLUSTER = "graftline.pipeline.beam.runner.ClusterRunner"
# Without an option that says where workers get their code from, every Beam node of TFX packs all of
# TFX into a source archive first, for seconds. Our workers have it installed: runners that start no
# containers ignore the option.
_CODE_IS_INSTALLED = "installed"
# How long a worker waits for more of its job: a new one would load TensorFlow again. It waits after
# the job's end, too, and keeps its memory.
_WORKERS_STAY_MS = 30_000


def beam_options(config: BeamConfig, stage: Stage) -> list[str]:
    """The options of a stage, with the runner among them.

    They are no part of what a stage makes: the cache of nodes does not see them.
    """
    own = config.nodes.get(stage, StageConfig())
    runner, parallelism = config.runner_of(stage), config.parallelism_of(stage)
    if runner == "direct":
        options = _direct(config.processes_of(stage))
    elif runner in WITH_JOB_SERVER:
        options = _portable(config)
        if runner == "flink" and parallelism:
            options.append(f"--parallelism={parallelism}")
    else:
        options = ["--runner=DataflowRunner"]
        if config.workers.image:
            options.append(f"--sdk_container_image={config.workers.image}")
        if parallelism:
            options.append(f"--max_num_workers={parallelism}")
    # Types of TFX's own transforms take longer to check than a small span's images.
    return [*options, "--no_pipeline_type_check", *config.options, *own.options]


def _direct(processes: int) -> list[str]:
    runner, mode = (_PROCESSES, "multi_processing") if processes > 1 else (_DIRECT, "in_memory")
    return [
        f"--runner={runner}",
        f"--direct_running_mode={mode}",
        f"--direct_num_workers={processes}",
        f"--sdk_container_image={_CODE_IS_INSTALLED}",
    ]


def _portable(config: BeamConfig) -> list[str]:
    workers = config.workers
    options = [
        f"--runner={_CLUSTER}",
        f"--job_endpoint={config.job_server}",
        f"--environment_type={workers.start.upper()}",
        f"--environment_cache_millis={_WORKERS_STAY_MS}",
        f"--sdk_container_image={workers.image or _CODE_IS_INSTALLED}",
    ]
    if config.artifact_server:
        options.append(f"--artifact_endpoint={config.artifact_server}")
    if workers.start == "process":
        command = msgspec.json.encode({"command": workers.command}).decode()
        options.append(f"--environment_config={command}")
    elif workers.start == "external":
        options.append(f"--environment_config={workers.pool}")
    elif workers.start == "docker":
        options.append(f"--environment_config={workers.image}")
    return options
