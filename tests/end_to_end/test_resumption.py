"""What a resumed run finds changed meanwhile, and who else may run meanwhile."""

from __future__ import annotations

import shutil
import signal

import pytest

from commands import Command, draw, graftline, last_run
from graftline.components.verdict import Verdict

pytestmark = pytest.mark.end_to_end


def test_a_resumed_run_looks_at_every_node_anew_where_the_schema_changed_meanwhile(project):
    Command(project, "run", halt_in="Trainer").kill(signal.SIGKILL)
    schema = project / "schema" / "schema.pbtxt"
    schema.write_text(schema.read_text().replace('value: "red"', 'value: "crimson"'))

    assert "red" in graftline(project, "resume", expect=3)

    assert last_run(project).refused_by == "data"


def test_a_version_that_was_published_before_the_kill_is_not_judged_anew_by_changed_code(project):
    Command(project, "run", halt_in="Pusher").kill(signal.SIGKILL)
    with (project / "schema" / "schema.pbtxt").open("a") as schema:
        schema.write("# Reviewed.\n")

    assert "Version 1 is published" in graftline(project, "resume")

    assert (last_run(project).state, last_run(project).published_version) == ("published", 1)


def test_a_run_whose_earlier_span_was_replaced_meanwhile_does_not_go_on(project, tmp_path):
    graftline(project, "drop", str(draw(tmp_path / "images" / "second", 30, seed=2)))
    Command(project, "run", halt_in="Transform").kill(signal.SIGKILL)
    again = str(draw(tmp_path / "images" / "mended", 30, seed=3))
    graftline(project, "drop", again, "--span", "1", "--version", "2")

    said = graftline(project, "resume", expect=2)

    assert "span 1 has been replaced by version 2" in said


def test_a_resumed_run_compares_with_the_version_in_service_also_when_its_files_are_gone(project):
    graftline(project, "run")
    Command(project, "run", "--force", halt_in="Trainer").kill(signal.SIGKILL)
    shutil.rmtree(project / "tfx" / "in_service")

    assert "compared with version 1" in graftline(project, "resume")

    verdict = Verdict.read(project / "runs" / "run-0002" / "model_gate.json")
    assert any(check.baseline is not None for check in verdict.checks)


def test_while_a_run_is_under_way_another_is_turned_away_and_all_is_shown(project):
    assert "No run yet" in graftline(project, "status")
    first = Command(project, "run", halt_in="StatisticsGen")
    first.wait_halted()

    assert "run-0001" in graftline(project, "run", expect=2)
    assert "run-0001" in graftline(project, "resume", expect=2)
    assert "under way" in graftline(project, "status")

    assert first.kill(signal.SIGINT) == 130
    assert "Interrupted" in first.output
    assert "graftline resume" in graftline(project, "status")
    refused = graftline(project, "resume", "trainer.batch_size=8", expect=2)
    assert "keeps the configuration" in refused
