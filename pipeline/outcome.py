"""How a run comes out: what its gates found, what is recorded of it, what can be done next.

The local runner asks at the end of the pipeline, a step on a cluster after its own node.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from graftline.components.verdict import Verdict
from graftline.pipeline import run_record
from graftline.pipeline.console import Console
from graftline.pipeline.plan import SpanVersion
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.serving.errors import Refused

if TYPE_CHECKING:
    import ml_metadata

# What can be done about a candidate that one of them refused.
_NEXT_STEPS = {
    "model": "To publish it all the same: `graftline run --bless --reason TEXT`.",
    "probe": (
        "What the server said is in serving_probe.log there. `graftline resume` asks it again; "
        "with other bounds: `graftline run probe.KEY=VALUE`."
    ),
}


def data_refused(
    project: Project, record: RunRecord, target: SpanVersion, report: Path, *, earlier: bool
) -> Refused:
    """Records that the data gate said no to a span.

    Args:
        project: the project.
        record: of the run, changed in place.
        target: the span.
        report: folder of the verdict.
        earlier: whether it is a span of the window, without which the run goes on.

    Returns:
        the verdict in words, and what to do.
    """
    record.refused_spans = (*record.refused_spans, target)
    if not earlier:
        record.refused_by = "data"
    verdict = Verdict.read(report / "data_gate.json")
    return Refused(
        f"{target} is refused: nothing was trained on it.\n{verdict.in_words()}\n"
        f"{_what_to_do(project, target, verdict)}",
        msgspec.to_builtins(verdict),
    )


def judge(project: Project, record: RunRecord, console: Console, *gates: str) -> None:
    """Shows what the model gate and the serving probe found.

    Args:
        project: the project.
        record: of the run, changed in place.
        console: where it is shown.
        gates: names of the reports, in order, e.g. `model_gate`.

    Raises:
        Refused: one of them refused the candidate.
    """
    folder = project.runs / record.run_id
    for gate in gates:
        verdict = Verdict.read(folder / f"{gate}.json")
        console.table(verdict.table())
        if not verdict.passed:
            record.refused_by = verdict.gate
            raise Refused(
                f"The candidate of {record.run_id} is refused: nothing was published.\n"
                f"{verdict.in_words()}\nIts report stays in {folder}. "
                f"{_NEXT_STEPS[verdict.gate]}",
                msgspec.to_builtins(verdict),
            )


def conclude(record: RunRecord, store: ml_metadata.MetadataStore) -> None:
    """Records the version that was published."""
    from graftline.pipeline.store import pushed_version

    record.published_version = pushed_version(store)
    record.state = run_record.PUBLISHED


def _what_to_do(project: Project, target: SpanVersion, verdict: Verdict) -> str:
    again = (
        f"Mend the data and drop it again (graftline drop SOURCE --span {target.span} "
        f"--version {target.version + 1})"
    )
    if verdict.final:
        return (
            f"{again}; nothing can be trained on it as it is. A class that is to be learnt "
            f"from now on belongs into the schema, {project.schema}."
        )
    return (
        f"{again}, or let it through with `graftline run --span {target.span} "
        "--accept-anomalies --reason TEXT`."
    )
