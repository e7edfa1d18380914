"""What a worker of a cluster says of itself: which code it has, which folders it sees.

`check` runs `Look` on one element. It answers by counters, which every runner brings back, and
reads files that the asking machine has just written, so that a folder of the same name on another
disk is not taken for the right one.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import apache_beam as beam
import msgspec
from apache_beam.metrics import Metrics

NAMESPACE = "graftline.probe"
SEEN = "seen"
_LIBRARIES = ("apache-beam", "tensorflow", "tfx")


class Question(msgspec.Struct, frozen=True):
    """What to look at.

    Attributes:
        tokens: content of a file that is there, by its path; its folder is to be written to.
        sources: time of change in whole seconds of a path that is only read.
        versions: of the asking machine's code, by name.
    """

    tokens: dict[str, str]
    sources: dict[str, int]
    versions: dict[str, str]


class Look(beam.DoFn):
    """Answers by counters: `seen` once, and one per difference, `KIND|WHAT|FOUND`."""

    def __init__(self, question: bytes) -> None:
        self._question = question

    def process(self, element: object) -> None:
        """Looks, whatever the element is."""
        question = msgspec.json.decode(self._question, type=Question)
        for answer in (SEEN, *_differences(question)):
            Metrics.counter(NAMESPACE, answer).inc()


def _differences(question: Question) -> Iterator[str]:
    own = versions()
    for name, asked in question.versions.items():
        if own[name] != asked:
            yield f"version|{name}|{own[name]}"
    for path, token in question.tokens.items():
        try:
            if Path(path).read_text() != token:
                yield f"folder|{path}|another file of this name"
                continue
            written = Path(f"{path}.{uuid.uuid4().hex}")
            written.write_text(token)
            written.unlink()
        except OSError as error:
            yield f"folder|{path}|{error.strerror}"
    for path, changed in question.sources.items():
        try:
            if int(Path(path).stat().st_mtime) != changed:
                yield f"source|{path}|another one of this name"
        except OSError as error:
            yield f"source|{path}|{error.strerror}"


def versions() -> dict[str, str]:
    """What has to be the same where a stage is built and where it runs."""
    from graftline.pipeline.code_digest import sources_digest

    found = {library: metadata.version(library) for library in _LIBRARIES}
    found["Python"] = ".".join(platform.python_version_tuple()[:2])
    # The number stays while the code changes.
    found["graftline"] = f"{metadata.version('graftline')} ({sources_digest()[:12]})"
    return found
