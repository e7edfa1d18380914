"""Several machines that train one model: which they are, and how the others learn of a training.

TensorFlow finds them in the environment variable TF_CONFIG. The chief runs the pipeline; when it
comes to the Trainer, it leaves what is to be trained in the project's folder, which all machines
share, and `graftline work` on the others takes part. Each leaves a note there that it does, or why
it does so no more.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from graftline.serving.errors import UserError

_FILE = "training.json"


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """A training that is under way.

    Attributes:
        token: another one for every training.
        function: `package.module:name` of what takes part in it.
        arguments: of the function, plain data.
    """

    token: str
    function: str
    arguments: dict[str, Any]


def cluster_size() -> int:
    """How many workers TF_CONFIG names; 1 without it.

    Raises:
        UserError: it is no JSON object.
    """
    return sum(len(_cluster().get(job, ())) for job in ("chief", "worker")) or 1


def worker_number() -> int:
    """Which of the cluster's workers this process is; the chief is 0."""
    task = _tf_config().get("task", {})
    chiefs = len(_cluster().get("chief", ()))
    return int(task.get("index", 0)) + (chiefs if task.get("type") == "worker" else 0)


def _cluster() -> Mapping[str, Sequence[str]]:
    return _tf_config().get("cluster", {})


def _tf_config() -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(os.environ.get("TF_CONFIG") or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UserError(
            f"The environment variable TF_CONFIG is no JSON object: {error}."
        ) from error


@contextlib.contextmanager
def announced(folder: Path, function: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Lets the other machines know of a training for as long as it goes on.

    Args:
        folder: where they look.
        function: `package.module:name` of what they call.
        arguments: plain data.

    Yields:
        the training's token.
    """
    one = Announcement(token=uuid.uuid4().hex, function=function, arguments=dict(arguments))
    folder.mkdir(parents=True, exist_ok=True)
    _empty(folder)
    _put(folder / _FILE, msgspec.json.encode(one))
    try:
        yield one.token
    finally:
        _empty(folder)


def _empty(folder: Path) -> None:
    """Removes what trainings have left."""
    for path in folder.iterdir():
        path.unlink(missing_ok=True)


def _put(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}")
    staged.write_bytes(content)
    staged.replace(path)


def leave_note(folder: Path, token: str, worker: int, failure: str = "") -> None:
    """Tells the chief that a worker takes part in a training, or why it does so no more.

    Args:
        folder: where the training was announced.
        token: of the training.
        worker: its number.
        failure: in words; empty: it takes part.
    """
    with contextlib.suppress(FileNotFoundError):  # the chief has gone and removed it all
        _put(folder / f"{token}.{worker}", failure.encode())


def notes(folder: Path, token: str) -> dict[int, str]:
    """What workers have left in a training: why each has failed, empty where it takes part."""
    found = {}
    for path in folder.glob(f"{token}.*"):
        found[int(path.suffix.removeprefix("."))] = path.read_text("utf-8", errors="replace")
    return found


def under_way(folder: Path) -> Announcement | None:
    """The training that the chief has announced, if there is one."""
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=Announcement)
    except FileNotFoundError:
        return None


def forget(folder: Path) -> None:
    """Removes what a chief that was killed has left, which workers would take for its training."""
    (folder / _FILE).unlink(missing_ok=True)


def wait_for_another(folder: Path, than: str, poll: float) -> Announcement:
    """Waits until the chief announces a training.

    Args:
        folder: where it does.
        than: the token of one that was seen already.
        poll: seconds between two looks.
    """
    while (found := under_way(folder)) is None or found.token == than:
        time.sleep(poll)
    return found
