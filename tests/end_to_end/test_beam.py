"""Where Beam stages run is no part of what they make."""

import signal

import pytest

from commands import Command, last_run

pytestmark = pytest.mark.end_to_end

BEAM_NODES = ("ImportExampleGen", "StatisticsGen", "Transform")


def test_a_run_on_two_processes_takes_what_one_process_made_from_the_cache(project):
    Command(project, "run", halt_in="Trainer").kill(signal.SIGKILL)
    states = {node.id: node.state for node in last_run(project).nodes}
    assert {states[node] for node in BEAM_NODES} == {"done"}

    Command(project, "run", "beam.parallelism=2", halt_in="Trainer").kill(signal.SIGKILL)

    states = {node.id: node.state for node in last_run(project).nodes}
    assert {states[node] for node in BEAM_NODES} == {"cached"}
