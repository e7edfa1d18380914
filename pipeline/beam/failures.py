"""What a person can do about a stage that failed on a cluster, by what the cluster said.

A runner passes on the text of the first cause only, and each says it in its own words; what is not
known here goes through as it came, and is a crash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from graftline.pipeline.beam.config import BeamConfig
from graftline.serving.errors import UserError

_SAID = 400

_AFTERWARDS = "What was finished is kept: once that is mended, go on with `graftline resume`."

# In this order: a lost TaskManager is also a lack of slots.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No module named '(graftline[\w.]*)'",
        "the workers' Python has no package graftline, from which they take the code. Install the "
        "same version there as here, in the environment of {start}.",
    ),
    (
        r"No module named '([\w.]+)'",
        "the workers' Python has not all packages that are installed here. Make their environment "
        "from the same lock file, and have {start} use it.",
    ),
    (
        r"error=(2|13),|Cannot run program",
        "the machines of the cluster cannot start {start}. Install graftline there with that on "
        "the PATH of Flink's TaskManagers, or give the whole path in beam.workers.command.",
    ),
    (
        r"Process died with exit code|[Ww]orker .* exited|SDK harness .* (died|disconnected)",
        "the workers start and end at once. Try {start} on a machine of the cluster; what it says "
        "is in the TaskManager's log.",
    ),
    (
        r"environment and pipeline runtime environment are not compatible|"
        r"SDK harness Python version|unsupported pickle protocol|unknown opcode",
        "the workers have another version of Python or Beam. Make their environment from the same "
        "lock file.",
    ),
    (
        r"Insufficient number of network buffers",
        "Flink's TaskManagers have too little network memory for so many parts. Raise "
        "taskmanager.memory.network.min and taskmanager.memory.network.max (1g is enough for all "
        "stages at a parallelism of 2), or lower beam.parallelism.",
    ),
    (
        r"Metaspace",
        "the memory for classes of a Flink process is used up. Raise "
        "taskmanager.memory.jvm-metaspace.size, or restart the TaskManagers.",
    ),
    (
        r"Java heap space|GC overhead limit",
        "a Java process of the cluster has too little heap. Raise "
        "taskmanager.memory.task.heap.size of Flink's TaskManagers, or the job server's -Xmx.",
    ),
    (
        r"Direct buffer memory",
        "a TaskManager has too little memory off the heap. Raise "
        "taskmanager.memory.task.off-heap.size.",
    ),
    (
        r"NoResourceAvailable|[Cc]ould not (acquire|allocate) the (minimum )?required|"
        r"[Ss]lot request|NoMatchingSlot|TimeoutException: Timeout has occurred",
        "the cluster has not as many free task slots as the stage has parts. Start the "
        "TaskManagers that are missing, end other jobs, or lower beam.parallelism.",
    ),
    (
        r"no longer reachable|Heartbeat of TaskManager|TaskManager .*(lost|gone)|"
        r"TaskExecutor .*(lost|disconnect|shut)|unexpectedly closed by remote|"
        r"Connection .*(refused|reset)|NoRestartBackoffTimeStrategy|RecipientUnreachable|"
        r"Lost connection to task manager",
        "a TaskManager, or the workers beside it, went away, and the job was not started again. "
        "See that all are up, and give the cluster a restart strategy (restart-strategy.type: "
        "exponential-delay), so that the next loss costs only time.",
    ),
    (
        r"StatusCode\.UNAVAILABLE|failed to connect to all addresses|Socket closed|"
        r"FutureTimeoutError",
        "the job server went away while the stage was under way. Start it again.",
    ),
    (
        r"No such file or directory|NOT_FOUND|NotFoundError|FileNotFoundError",
        "the workers do not find a file that was written here: all machines have to see the "
        "project's folders under the same path (a shared volume).",
    ),
)
# The same of a job server, which says it in Java or before any of our code runs.
_UNABLE = (
    r"[Uu]nknown (urn|transform|environment)|[Uu]nsupported|UNIMPLEMENTED|"
    r"No translator known|not supported",
    "the job server cannot run the pipelines of this Beam. Take the one of the same version of "
    "Beam, for the version of the cluster.",
)
_TRACEBACK = "Traceback (most recent call last)"
# What code of ours raises by mistake, and no cluster.
_MISTAKES = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, NameError)


@contextmanager
def explained(config: BeamConfig, node: str, afterwards: str = _AFTERWARDS) -> Iterator[None]:
    """Turns what a cluster says of a failed stage into what a person can do about it.

    Args:
        config: the section `beam`.
        node: name of the stage, or of a node that Beam has no part in.
        afterwards: what to do once that is done.

    Raises:
        UserError: with the cause, where it is a known one of a runner other than this machine.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        runner = config.runner_of(node)
        if runner == "direct" or isinstance(error, _MISTAKES):
            raise
        text = str(error) or type(error).__name__
        told = cause(text, config)
        if told is None:
            raise
        raise UserError(
            f"{node} failed on {runner}: {told} It said: {_first_line(text)}\n{afterwards}"
        ) from error


def cause(text: str, config: BeamConfig) -> str | None:
    """What is wrong, and what to do, by the words of a runner; None where they are not known."""
    start = {
        "process": f"`{config.workers.command}` (beam.workers.command)",
        "external": "the worker pool (beam.workers.pool)",
        "docker": f"the image {config.workers.image} (beam.workers.image)",
        "loopback": "this command",
    }[config.workers.start]
    # In a worker's traceback the words are those of Python, such as `unsupported operand`.
    causes = _CAUSES if _TRACEBACK in text else (*_CAUSES, _UNABLE)
    for pattern, advice in causes:
        if re.search(pattern, text):
            return advice.format(start=start)
    return None


def _first_line(text: str) -> str:
    """What counts of a runner's message: without its job's name, a traceback's last line."""
    said = re.sub(r"^Pipeline \S+ failed in state FAILED: ", "", text).strip()
    if _TRACEBACK in said:
        said = [line for line in said.splitlines() if line.strip()][-1].strip()
    line = " ".join(said.split())
    return line if len(line) <= _SAID else f"{line[:_SAID]} …"
