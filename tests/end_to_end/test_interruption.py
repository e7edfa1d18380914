"""Killed or interrupted in any node, a run loses nothing and does nothing twice."""

from __future__ import annotations

import signal

import pytest

from commands import Command, graftline, last_run
from graftline.pipeline import run_record
from graftline.serving.base_path import BasePath

pytestmark = pytest.mark.end_to_end

NODES = (
    "ImportExampleGen",
    "ImportSchemaGen",
    "in_service",
    "previous_span",
    "StatisticsGen",
    "ExampleValidator",
    "DataGate",
    "window",
    "Transform",
    "Trainer",
    "Evaluator",
    "ModelGate",
    "Pusher",
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_every_node_a_run_resumes_and_does_nothing_twice(project, number):
    base_path = BasePath(project / "serving" / "blobs")
    command = "run"
    for node in NODES:
        stopped = Command(project, command, halt_in=node)
        assert stopped.kill(number) == (-number if number == signal.SIGKILL else 130)
        record = last_run(project)
        assert (record.run_id, record.state) == ("run-0001", run_record.INTERRUPTED)
        assert record.nodes[-1].id == node
        assert {n.state for n in record.nodes[:-2]} <= {"cached", "done"}
        command = "resume"
    # Stopped in the publisher, the version was published and not yet recorded as such.
    assert [v.number for v in base_path.versions()] == [1]
    graftline(project, "resume")

    assert [v.number for v in base_path.versions()] == [1]
    states = {node.id: node.state for node in last_run(project).nodes}
    assert {states[node] for node in ("ImportExampleGen", "Trainer", "Evaluator")} == {"cached"}
    trainings = list((project / "tfx" / "Trainer" / "model").iterdir())
    assert len(trainings) == 1, "what was cut off is gone, what was whole was not made again"
    graftline(project, "verify")
    assert "nothing to resume" in graftline(project, "resume", expect=2)
