"""What a run decides: which spans it ingests, trains on and leaves out, what it compares with."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from graftline.components.ingest.spans import SUMMARY
from graftline.pipeline import planning
from graftline.pipeline.config import Config, WindowConfig
from graftline.pipeline.plan import SpanVersion
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.manifest import Manifest


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, Config())


def spans(project: Project, *versions: tuple[int, int]) -> list[SpanVersion]:
    for span, version in versions:
        folder = project.spans / f"span-{span}" / f"version-{version}"
        folder.mkdir(parents=True)
        (folder / SUMMARY).write_text("{}")
    return [SpanVersion(span, version) for span, version in versions]


def with_window(project: Project, last: int) -> Project:
    config = msgspec.structs.replace(project.config, window=WindowConfig(last=last))
    return Project(project.root, config)


def publish(project: Project, content: str, model_id: str) -> int:
    source = project.root / f"model-{model_id}"
    source.mkdir()
    (source / "saved_model.pb").write_text(content)
    return BasePath(project.base_path).publish(source, Manifest(model="model", model_id=model_id))


def test_spans_before_the_target_that_no_run_has_seen_are_ingested_first(project):
    first, second, third = spans(project, (1, 1), (2, 1), (3, 1))
    assert planning.never_ingested(project, third, {first}, set()) == [second]


def test_a_span_that_has_passed_and_lost_its_examples_since_is_ingested_again(project):
    first, second, third = spans(project, (1, 1), (2, 1), (3, 1))
    passed = {first, second}
    assert planning.never_ingested(project, third, passed, set(), lost={first}) == [first]
    # Not where the window does not reach it.
    assert planning.never_ingested(with_window(project, 2), third, passed, set(), {first}) == []


def test_within_reach_are_the_newest_versions_that_the_window_can_hold(project):
    first, _, second = spans(project, (1, 1), (2, 1), (2, 2))
    assert planning.spans_within_reach(project) == [first, second]
    assert planning.spans_within_reach(with_window(project, 1)) == [second]


def test_a_refused_span_stays_out_and_gives_its_place_in_the_window_to_the_one_before(project):
    first, second, third = spans(project, (1, 1), (2, 1), (3, 1))
    narrow = with_window(project, 2)
    assert planning.never_ingested(narrow, third, set(), {second}) == [first]
    assert planning.make_plan(narrow, "run-0001", third, {first}).window == (first, third)


def test_a_span_refused_once_and_let_through_later_keeps_its_place_in_the_window(project):
    first, second, third = spans(project, (1, 1), (2, 1), (3, 1))
    narrow = with_window(project, 2)
    assert planning.never_ingested(narrow, third, {second}, {second}) == []
    assert planning.make_plan(narrow, "run-0001", third, {first, second}).window == (second, third)


def test_a_span_whose_replacement_was_refused_is_left_out_not_read_as_it_was(project):
    first, old, new, target = spans(project, (1, 1), (2, 1), (2, 2), (3, 1))
    plan = planning.make_plan(project, "run-0001", target, {first, old})
    assert plan.window == (first, target)
    assert plan.previous == first
    assert planning.left_out(project, plan) == [new]


def test_what_lies_before_the_window_is_not_called_left_out(project):
    found = spans(project, (1, 1), (2, 1), (3, 1))
    plan = planning.make_plan(with_window(project, 2), "run-0001", found[2], {found[1]})
    assert planning.left_out(with_window(project, 2), plan) == []


def test_without_a_version_in_service_there_is_nothing_to_compare_with(project):
    assert planning.hold_in_service(project) == (None, "")


def test_the_version_in_service_is_held_also_when_it_is_withdrawn_during_the_run(project):
    publish(project, "old weights", "a")
    publish(project, "weights", "b")
    number, uri = planning.hold_in_service(project)
    BasePath(project.base_path).withdraw(2)
    assert number == 2
    assert (Path(uri) / "Format-Serving" / "saved_model.pb").read_text() == "weights"


def test_another_model_of_the_same_number_is_held_beside_the_first(project):
    publish(project, "weights", "a")
    _, first = planning.hold_in_service(project)
    (project.base_path / "1").rename(project.root / "gone")
    (project.base_path / "history.jsonl").unlink()
    assert publish(project, "other weights", "b") == 1

    _, second = planning.hold_in_service(project)

    assert first != second
    assert (Path(second) / "Format-Serving" / "saved_model.pb").read_text() == "other weights"


def test_a_version_that_cannot_be_read_is_named(project):
    publish(project, "weights", "a")
    (project.base_path / "1" / "variables").symlink_to("/nowhere")
    with pytest.raises(UserError, match="Version 1"):
        planning.hold_in_service(project)


def ran(span: int, state: str, *, version: int = 1, **others: object) -> RunRecord:
    return RunRecord(run_id=f"run-{span}", span=span, version=version, state=state, **others)


def test_the_next_span_is_the_first_after_those_that_were_dealt_with(project):
    first, second, third = spans(project, (1, 1), (2, 1), (3, 1))
    assert planning.next_span(project, []) == first
    assert planning.next_span(project, [ran(1, "published")]) == second
    refused = ran(2, "refused", refused_by="data", refused_spans=(second,))
    assert planning.next_span(project, [refused, ran(1, "published")]) == third
    assert planning.next_span(project, [ran(3, "refused", refused_by="model")]) is None


def test_a_span_whose_run_broke_off_or_was_not_served_comes_again(project):
    first, second = spans(project, (1, 1), (2, 1))
    for state, refuser in (("failed", ""), ("interrupted", ""), ("refused", "probe")):
        record = ran(2, state, refused_by=refuser)
        assert planning.next_span(project, [record, ran(1, "published")]) == second
    assert planning.next_span(project, [ran(1, "tuned", tunes=True)]) == first


def test_a_newer_version_of_the_last_span_comes_next_and_one_of_an_earlier_span_does_not(project):
    _, _, newer, _ = spans(project, (1, 1), (2, 1), (2, 2), (1, 2))
    assert planning.next_span(project, [ran(2, "published")]) == newer
    assert planning.next_span(project, [ran(2, "published", version=2)]) is None
