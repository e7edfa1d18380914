"""Tells people how a run or a drop ended; what the command line and the steps of a cluster call.

Whether they could be told never decides how it ends: problems go to the standard error and the log.
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Mapping
from pathlib import Path

from graftline.pipeline.notify.notice import Notice, job_link, notice_of_run
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord

NO_LINKS: Mapping[str, str] = types.MappingProxyType({})


def tell_of_run(project: Project, record: RunRecord, links: Mapping[str, str] = NO_LINKS) -> None:
    """Tells that a run has published, was refused or failed; nothing of any other end.

    Args:
        project: the project, configured as the run was.
        record: the run's record, its end in it.
        links: further links by what they lead to, such as that of the run on a cluster.
    """
    notice = notice_of_run(project, record, links)
    if notice:
        tell(project, notice)


def tell_rejected(project: Project, source: Path, why: str) -> None:
    """Tells that a drop cannot be taken in.

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
    tell(project, notice)


def tell(project: Project, notice: Notice) -> None:
    """Delivers a notice within the deadline of the section `notify`; never raises."""
    from graftline.pipeline.notify.delivery import deliver

    for name, problem in deliver(project.config.notify, notice, project.root).items():
        told = f"FAILED: {problem}" if problem else "done"
        logging.getLogger("graftline").info("tell by %s of %s: %s", name, notice.title, told)
        if problem:
            print(
                f"Not told by {name}: {problem}. Try it out with `graftline notify`.",
                file=sys.stderr,
            )
