"""What a run decides at its start, from the spans on disk and those that the data gate passed.

The decisions are made here and nowhere else; the plan carries them to every node of the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable

from graftline.components.ingest.spans import list_spans
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import PUBLISHED, REFUSED, RunRecord
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.file_system import link_or_copy
from graftline.serving.manifest import digest, hash_files


def next_span(project: Project, records: Iterable[RunRecord]) -> SpanVersion | None:
    """The span that nobody has dealt with yet and that comes next; None where there is none.

    Spans are taken in the order of their numbers, from the last one that was published or refused
    by a gate. One whose run broke off is taken again; one before it that was replaced is not, for a
    model of it would lack those that came after.
    """
    settled: list[SpanVersion] = []
    for record in records:
        if not record.tunes:
            settled += record.refused_spans
            if record.state in (PUBLISHED, REFUSED) and not record.can_go_on:
                settled.append(record.target)
    last = max(settled, default=SpanVersion(0, 0))
    return next((span for span in _newest_spans(project) if span > last), None)


def never_ingested(
    project: Project,
    target: SpanVersion,
    blessed: Collection[SpanVersion],
    refused: Collection[SpanVersion],
    lost: Collection[SpanVersion] = (),
) -> list[SpanVersion]:
    """Earlier spans of the window that have to be taken in; one that was refused stays out.

    Args:
        project: the project.
        target: the span of the run.
        blessed: what the data gate has passed.
        refused: what it has refused.
        lost: of what it has passed, that of which the examples were removed since.
    """
    earlier = [
        span
        for span in _newest_spans(project)
        if span < target and (span in blessed or span not in refused)
    ]
    return [
        span for span in _within_window(project, earlier) if span not in blessed or span in lost
    ]


def spans_within_reach(project: Project) -> list[SpanVersion]:
    """The spans that the window of a run on the newest span, or on a coming one, can hold."""
    last = project.config.window.last
    spans = _newest_spans(project)
    return spans if last is None else spans[-last:]


def make_plan(
    project: Project, run_id: str, target: SpanVersion, blessed: Collection[SpanVersion]
) -> Plan:
    """The plan of a run on a span, without anybody's override.

    Args:
        project: the project.
        run_id: name of the run.
        target: the span that it ingests.
        blessed: what the data gate has passed.
    """
    # A span that was replaced is read as its newest version or not at all.
    earlier = [span for span in _newest_spans(project) if span < target and span in blessed]
    baseline, uri = hold_in_service(project)
    return Plan(
        run_id=run_id,
        target=target,
        window=(*_within_window(project, earlier), target),
        previous=earlier[-1] if earlier else None,
        baseline=baseline,
        baseline_uri=uri,
        start_from=uri if project.config.trainer.warm_start else "",
    )


def left_out(project: Project, plan: Plan) -> list[SpanVersion]:
    """Spans on disk that the window would hold had the data gate passed them."""
    last = project.config.window.last
    first = 0 if last is None else plan.window[0].span
    return [
        span
        for span in _newest_spans(project)
        if first < span.span < plan.target.span and span not in plan.window
    ]


def hold_in_service(project: Project) -> tuple[int | None, str]:
    """The version in service, and a folder that keeps its files for as long as the run needs them.

    The folder has the layout of a Trainer's model, its name the digest of the version's files: a
    version of the same number and other content is another model.

    Returns:
        Number and folder; None and an empty string where nothing is in service.

    Raises:
        UserError: the version cannot be read or linked.
    """
    base_path = BasePath(project.base_path)
    version = base_path.in_service()
    if version is None:
        return None, ""
    published = base_path.folder(version)
    try:
        content = digest(hash_files(published))
        folder = project.artifacts / "in_service" / f"{version}-{content[:16]}"
        if not folder.exists():
            staged = folder.with_name(f".{folder.name}")
            shutil.rmtree(staged, ignore_errors=True)
            # Linked file by file: a rollback during the run moves the folder of the version away.
            shutil.copytree(published, staged / "Format-Serving", copy_function=link_or_copy)
            staged.rename(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Version {version}, which is in service, cannot be read from {published} to compare "
            f"with: {error}."
        ) from error
    return version, str(folder)


def _newest_spans(project: Project) -> list[SpanVersion]:
    newest = {span.number: span.version for span in list_spans(project.spans)}
    return [SpanVersion(number, version) for number, version in sorted(newest.items())]


def _within_window(project: Project, earlier: list[SpanVersion]) -> list[SpanVersion]:
    """The newest of the earlier spans that the window has room for beside the target."""
    last = project.config.window.last
    return earlier if last is None else earlier[len(earlier) - min(last - 1, len(earlier)) :]
