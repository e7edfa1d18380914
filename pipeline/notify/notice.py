"""What people are told: one event with its verdicts and links, as JSON and in words."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from graftline.components.verdict import Verdict
from graftline.pipeline import run_record
from graftline.pipeline.notify.config import EVENTS
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord

_WIDTH = 100
_VERDICTS = ("data_gate.json", "model_gate.json", "serving_probe.json")


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened.

    Attributes:
        event: published, refused, failed or rejected; trial for a test of the channels.
        model: name of the model.
        title: in one line.
        details: in words, beyond the title and the verdicts.
        run: name of the run, if it is about one.
        span: number of its span.
        version: the version that was published.
        verdicts: what the gates and the probe decided.
        links: addresses or paths, by what they lead to.
        host: the machine that tells.
        time: UTC, ISO 8601.
    """

    event: str
    model: str
    title: str
    details: str = ""
    run: str = ""
    span: int | None = None
    version: int | None = None
    verdicts: tuple[Verdict, ...] = ()
    links: dict[str, str] = {}
    host: str = msgspec.field(default_factory=socket.gethostname)
    time: str = msgspec.field(default_factory=run_record.now)

    def in_words(self) -> str:
        """Title, details, the table of every verdict, links."""
        parts = [self.title, self.details, *(_table(verdict) for verdict in self.verdicts)]
        parts.append("\n".join(f"{name}: {link}" for name, link in self.links.items()))
        return "\n\n".join(part for part in parts if part)

    def as_json(self) -> bytes:
        """All of it as a JSON object; `text` is what `in_words` gives."""
        return msgspec.json.encode({**msgspec.to_builtins(self), "text": self.in_words()})


def notice_of_run(project: Project, record: RunRecord) -> Notice | None:
    """What there is to tell about a run that came to its end.

    Args:
        project: the project.
        record: the run's record.

    Returns:
        None where there is nothing: it was interrupted, is under way, or only tried values.
    """
    model, folder = project.config.model.name, project.runs / record.run_id
    about = f"{record.run_id} on {record.target}"
    refusal = record.state == run_record.REFUSED
    if record.state == run_record.PUBLISHED:
        title = f"{model}: version {record.published_version} is published ({about})"
    elif refusal:
        title = f"{model}: {about} was refused by the {record.refuser or 'data gate'}"
    elif record.state == run_record.FAILED or (
        # On a cluster nobody presses Ctrl-C: a step was evicted or killed once too often.
        record.cluster and record.state == run_record.INTERRUPTED
    ):
        title = f"{model}: {about} failed"
    else:
        return None
    found = {"folder of the run": str(folder), "log": str(folder / run_record.LOG_NAME)}
    page = project.config.kubeflow.api.run_page(record.cluster)
    if record.cluster and page:
        found["run on the cluster"] = page
    if record.published_version is not None:
        found["version"] = str(project.base_path / str(record.published_version))
    event = record.state if record.state in EVENTS else run_record.FAILED
    return Notice(
        event=event,
        model=model,
        title=title,
        details=record.error,
        run=record.run_id,
        span=record.span,
        version=record.published_version,
        verdicts=tuple(verdicts(folder)),
        links={**found, **job_link()},
    )


def job_link() -> dict[str, str]:
    """The link of the CI job that this process belongs to; empty where it is none that is known."""
    if "GITHUB_RUN_ID" in os.environ:
        names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
        server, repository, run = (os.environ.get(name, "") for name in names)
        return {"job": f"{server}/{repository}/actions/runs/{run}"}
    if "CI_JOB_URL" in os.environ:
        return {"job": os.environ["CI_JOB_URL"]}
    return {}


def verdicts(folder: Path) -> Sequence[Verdict]:
    """What the gates and the probe of a run decided, as far as they did; by the run's folder."""
    return [Verdict.read(folder / name) for name in _VERDICTS if (folder / name).is_file()]


def _table(verdict: Verdict) -> str:
    from rich.console import Console

    table, stream = verdict.table(), io.StringIO()
    table.box = None  # mail and chat show lines of a box in letters of many widths
    Console(file=stream, width=_WIDTH, color_system=None).print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*lines, verdict.in_words()])
