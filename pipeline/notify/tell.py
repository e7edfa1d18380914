"""Tells people how a run or a drop ended; what the command line and the steps of a cluster call.

Whether they could be told never decides how it ends: problems go to the standard error and the log.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path

from graftline.pipeline import run_record
from graftline.pipeline.notify.notice import Notice, job_link, notice_of_run
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord


def tell_of_run(project: Project, record: RunRecord) -> None:
    """Tells that a run has published, was refused or failed; nothing of any other end.

    Never raises: it is called where a run ends, whatever it ends with.

    Args:
        project: the project, configured as the run was.
        record: the run's record, its end in it.
    """
    try:
        notice = notice_of_run(project, record)
        said = _deliver(project, notice) if notice else []
    except Exception as error:
        said = [f"Nobody was told: {traceback.format_exception_only(error)[-1].strip()}"]
        print(said[0], file=sys.stderr)
    with contextlib.suppress(OSError):
        log = project.runs / record.run_id / run_record.LOG_NAME
        with log.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in said)


def tell_not_begun(project: Project, kubeflow_run: str) -> None:
    """Tells that the first step of a run on a cluster failed before there was a run.

    Args:
        project: the project.
        kubeflow_run: id of the run on Kubeflow Pipelines.
    """
    model = project.config.model.name
    page = project.config.kubeflow.api.run_page(kubeflow_run)
    notice = Notice(
        event="failed",
        model=model,
        title=f"{model}: a run on the cluster failed before it began",
        details="The log of its step `begin` says why.",
        links={"run on the cluster": page} if page else {},
    )
    _deliver(project, notice)


def tell_rejected(project: Project, source: Path, why: str) -> None:
    """Tells that a drop cannot be taken in; never raises.

    Args:
        project: the project.
        source: the drop.
        why: in words.
    """
    model = project.config.model.name
    notice = Notice(
        event="rejected",
        model=model,
        title=f"{model}: the drop {source.name} is rejected",
        details=why,
        links={"drop": str(source.resolve()), **job_link()},
    )
    _deliver(project, notice)


def tell_given_up(project: Project, source: Path, why: str, log: Path) -> None:
    """Tells that a drop is not tried any more; never raises.

    Args:
        project: the project.
        source: the drop.
        why: in words.
        log: where more is said.
    """
    model = project.config.model.name
    notice = Notice(
        event="failed",
        model=model,
        title=f"{model}: the drop {source.name} is given up",
        details=f"It was {why}\nMend the cause, then: graftline watch --again {source.name}",
        links={"drop": str(source.resolve()), "log": str(log), **job_link()},
    )
    _deliver(project, notice)


def _deliver(project: Project, notice: Notice) -> list[str]:
    """Delivers within the deadline; a line for each channel, those that failed shown."""
    from graftline.pipeline.notify.delivery import deliver

    said = []
    for name, problem in deliver(project.config.notify, notice, project.root).items():
        if problem:
            said.append(f"Not told by {name}: {problem}. Try it out with `graftline notify`.")
            print(said[-1], file=sys.stderr)
        else:
            said.append(f"Told by {name}: {notice.title}")
    return said
