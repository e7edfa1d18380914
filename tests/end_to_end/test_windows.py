"""Which spans a run trains on: their order, those never run, those that were refused."""

from __future__ import annotations

import pytest
from PIL import Image

from commands import draw, graftline, last_run
from graftline.components.verdict import Verdict
from graftline.pipeline.plan import SpanVersion

pytestmark = pytest.mark.end_to_end


def test_spans_never_run_join_the_window_in_the_order_of_their_numbers(project, tmp_path):
    for number in (9, 10):
        images = draw(tmp_path / "images" / str(number), 12, seed=number)
        graftline(project, "drop", str(images), "--span", str(number))

    graftline(project, "run")

    assert last_run(project).window == (SpanVersion(1, 1), SpanVersion(9, 1), SpanVersion(10, 1))
    assert last_run(project).target == SpanVersion(10, 1)
    graftline(project, "run", "--span", "9", "window.last=1")
    assert last_run(project).window == (SpanVersion(9, 1),)


def test_a_span_that_is_not_there_is_an_error_that_names_those_that_are(project):
    assert "There: 1" in graftline(project, "run", "--span", "7", expect=2)


def test_a_shifted_span_is_refused_stays_out_and_can_be_let_through(project, tmp_path):
    dark = draw(tmp_path / "images" / "dark", 40, seed=4)
    for path in dark.rglob("*.png"):
        Image.open(path).point(lambda value: value // 4).save(path)
    graftline(project, "drop", str(dark))

    output = graftline(project, "run", expect=3)
    assert "luma_mean" in output
    assert "Trainer" not in output

    third = draw(tmp_path / "images" / "third", 20, seed=5)
    graftline(project, "drop", str(third))
    graftline(project, "run")
    assert last_run(project).window == (SpanVersion(1, 1), SpanVersion(3, 1))

    reason = ["--accept-anomalies", "--reason", "the lamp was out"]
    graftline(project, "run", "--span", "2", *reason)
    assert last_run(project).window == (SpanVersion(1, 1), SpanVersion(2, 1))
    written = project / "runs" / last_run(project).run_id / "data_gate.json"
    assert Verdict.read(written).overridden == "the lamp was out"
