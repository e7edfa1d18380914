"""`graftline run --like`: a run once more, from what it saved."""

import pytest

from commands import answer, graftline

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def repeated(published):
    """A project whose first run was repeated after its configuration had changed."""
    text = (published / "graftline.yaml").read_text()
    changed = text.replace("epochs: 4", "epochs: 1")
    assert changed != text
    (published / "graftline.yaml").write_text(changed)
    graftline(published, "run", "--like", "run-0001", "model_gate.tolerance=1")
    return published


def test_it_has_the_same_configuration_and_the_same_result(repeated):
    first, again = answer(repeated, "runs", "run-0001", "run-0002")
    differing = {
        key for key, value in first["configuration"].items() if again["configuration"][key] != value
    }
    assert differing == {"model_gate.tolerance"}
    # The first version had none before it to be compared with.
    assert again["measures"].items() >= first["measures"].items()
    assert again["record"]["window"] == first["record"]["window"]
    for phase, other in zip(first["training"]["phases"], again["training"]["phases"], strict=True):
        losses = [[epoch["loss"] for epoch in one["epochs"]] for one in (phase, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_nothing_comes_from_the_cache(repeated):
    _, again = answer(repeated, "runs", "run-0001", "run-0002")
    assert {node["state"] for node in again["record"]["nodes"]} == {"done"}


def test_a_run_that_is_not_there_is_named(published):
    said = graftline(published, "run", "--like", "run-0099", expect=2)
    assert "no run called 'run-0099'" in said
    assert "run-0001" in said


def test_a_span_beside_it_is_refused(published):
    said = graftline(published, "run", "--like", "run-0001", "--span", "1", expect=2)
    assert "leave --span out" in said
