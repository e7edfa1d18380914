"""Several workers on this machine, each a process with its own TensorFlow, that train one model.

They find each other through TF_CONFIG, as workers on several machines do; the first one is the
chief and writes what comes of it. They stop together: when one dies, the others would wait for it
for ever.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftline.components.progress import listen, report
from graftline.components.trainer.cluster import (
    announced,
    cluster_size,
    leave_note,
    notes,
    under_way,
    wait_for_another,
    worker_number,
)
from graftline.serving.errors import UserError

_PROGRESS = "graftline-progress "
_MISTAKE = "graftline-mistake "
_LAST_LINES = 20
_POLL = 0.2  # seconds
_GRACE = 10  # seconds


def train_in_workers(
    function: str, arguments: Mapping[str, Any], count: int, gpus: Sequence[str]
) -> None:
    """Runs a training in so many processes on this machine.

    Args:
        function: `package.module:name` of what each of them calls with the arguments.
        arguments: plain data.
        count: how many.
        gpus: which GPUs, as CUDA_VISIBLE_DEVICES names them; each process gets as many of them,
            one after the other, and what does not come out even stays idle. Without any they
            run on processors.

    Raises:
        UserError: this machine has not so many processors or GPUs, or a worker said so.
        RuntimeError: a worker died; has the last lines that it printed.
    """
    most, kind = (len(gpus), "GPUs") if gpus else (len(os.sched_getaffinity(0)), "processors")
    if count > most:
        raise UserError(
            f"trainer.workers is {count}, and there are {most} {kind} for them: set it to {most} "
            "or less, or name a cluster of several machines in the environment variable TF_CONFIG."
        )
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
    share = len(gpus) // count
    environments = []
    for number in range(count):
        task = {"type": "worker", "index": number}
        dealt = gpus[number * share : (number + 1) * share]
        environments.append(
            {
                "TF_CONFIG": json.dumps({"cluster": cluster, "task": task}),
                "CUDA_VISIBLE_DEVICES": ",".join(dealt),
            }
        )
    _run(function, arguments, environments)


def train_as_chief(function: str, arguments: Mapping[str, Any], folder: Path) -> None:
    """Runs this machine's part in the training of a cluster, and lets the others do theirs.

    It has a process of its own: TensorFlow joins a cluster only before it has done anything else.

    Args:
        function: `package.module:name` of what is called with the arguments.
        arguments: plain data.
        folder: where the others learn of it.

    Raises:
        UserError, RuntimeError: as `train_in_workers`; also where a worker of another machine died.
    """
    with announced(folder, function, arguments) as token:
        others = _Others(folder, token)
        try:
            _run(function, arguments, [{}], others.check)
        except RuntimeError as error:
            # Whoever died first, the others may have seen no more than a broken connection: all
            # of them are heard.
            said = dict.fromkeys([str(error), *others.wait_for_failures()])
            raise RuntimeError("\n".join(said)) from error


class _Others:
    """The workers of other machines, as far as they have told."""

    def __init__(self, folder: Path, token: str) -> None:
        self._folder, self._token = folder, token
        self._missing: list[int] = []

    def wait_for_failures(self) -> list[str]:
        """Why some of them have ended, as soon as one has told; not for long."""
        deadline = time.monotonic() + _GRACE
        while True:
            failures = [one for one in notes(self._folder, self._token).values() if one]
            if failures or time.monotonic() > deadline:
                return failures
            time.sleep(_POLL)

    def check(self) -> None:
        """Raises what ended one of them, and says for which of them the training waits."""
        found = notes(self._folder, self._token)
        for failure in filter(None, found.values()):
            raise RuntimeError(failure)
        missing = [number for number in range(1, cluster_size()) if number not in found]
        if missing and missing != self._missing:
            report(
                f"waiting for worker {', '.join(map(str, missing))} of the cluster: "
                "`graftline work` takes part there"
            )
        self._missing = missing


def take_part(folder: Path, tell: Callable[[str], None], *, once: bool) -> None:
    """Takes this machine's part in every training that the chief announces, until interrupted.

    Args:
        folder: where it does.
        tell: is given a line when a training begins and when it has ended.
        once: only in the next one.

    Raises:
        UserError: this machine is no worker of a cluster.
        RuntimeError: the only training has failed.
        KeyboardInterrupt: a person stops it; the chief is told, who would wait for ever.
    """
    if not worker_number():
        raise UserError(
            "The environment variable TF_CONFIG makes this machine no worker of a cluster beside "
            "its chief: there is no part to take. The chief starts trainings with `graftline run`."
        )
    token = ""
    while not (once and token):
        tell("waiting for the chief to train")
        one = wait_for_another(folder, token, _POLL)
        token = one.token
        tell("training")
        worker = _Worker(worker_number(), one.function, one.arguments, {})
        leave_note(folder, token, worker_number())
        try:
            # A chief that was killed leaves its announcement until it begins the next training.
            while worker.is_running and (under_way(folder) or one).token == token:
                time.sleep(_POLL)
            worker.check()
            tell("the chief began anew" if worker.is_running else "trained")
        except (UserError, RuntimeError) as error:
            leave_note(folder, token, worker_number(), str(error))
            if once:
                raise
            tell(str(error))
        except KeyboardInterrupt:
            stopped = f"Worker {worker_number()} of the training was interrupted on its machine."
            leave_note(folder, token, worker_number(), stopped)
            raise
        finally:
            worker.end()


def _run(
    function: str,
    arguments: Mapping[str, Any],
    environments: Sequence[Mapping[str, str]],
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Runs one process per environment until all have ended, one has failed or `watch` raises."""
    workers: list[_Worker] = []
    try:
        for number, environment in enumerate(environments):
            workers.append(_Worker(number, function, arguments, environment))
        while any(worker.is_running for worker in workers):
            for worker in workers:
                worker.check()
            watch()
            time.sleep(_POLL)
        for worker in workers:
            worker.check()
    finally:
        for worker in workers:
            worker.end()


def free_ports(count: int) -> list[int]:
    """So many ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class _Worker:
    """A process under way, whose output is passed on."""

    def __init__(
        self,
        number: int,
        function: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> None:
        self._number = number
        self._mistake: str | None = None
        self._last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            text=True,
            errors="replace",
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def check(self) -> None:
        """Raises what ended it, if anything but success did."""
        code = self._process.poll()
        if not code:
            return
        self._reader.join(_GRACE)
        if self._mistake is not None:
            raise UserError(self._mistake)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += (
                ", as the system does when memory runs out (then lower trainer.batch_size, "
                "trainer.workers or image.size)"
            )
        last = "\n".join(self._last)
        raise RuntimeError(
            f"{last}\nWorker {self._number} of the training {how}, so that the others were ended, "
            "too. Its last lines are above; `graftline resume` goes on after its last epoch."
        )

    def end(self) -> None:
        """Ends it if it has not ended."""
        if self.is_running:
            self._process.terminate()
            try:
                self._process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.rstrip("\n")
            if text.startswith(_PROGRESS):
                if self._number == 0:
                    report(text.removeprefix(_PROGRESS))
            elif text.startswith(_MISTAKE):
                self._mistake = json.loads(text.removeprefix(_MISTAKE))
            else:
                self._last.append(text)
                print(f"worker {self._number}: {text}", file=sys.stderr)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: its end of the pipe closes."""
    sys.stdin.read()
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """What each worker runs: the function that is named, with the arguments on standard input."""
    module, _, name = arguments[0].partition(":")
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listen(lambda text: print(_PROGRESS + text, flush=True))
    try:
        getattr(importlib.import_module(module), name)(given)
    except UserError as error:
        print(_MISTAKE + json.dumps(str(error)), flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
