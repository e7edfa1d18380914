"""Schedules on Kubeflow Pipelines: six fields, one per project, always the newest version."""

import json
from typing import Any

import pytest

from graftline.kubeflow import cron, schedule
from graftline.kubeflow.api import Api
from graftline.pipeline.kubeflow_config import ApiConfig
from graftline.serving.errors import UserError
from kubeflow_server import kubeflow, package

NIGHTLY = "0 0 2 * * *"
VERSION = "pipeline_version_id"


@pytest.mark.parametrize(
    "line",
    [
        NIGHTLY,
        "0 */15 8-18 * * MON-FRI",
        "0 0 0 1,15 JAN,jul ?",
        "30 5/20 * * * 0",
        "@daily",
        "@every 1h30m",
    ],
)
def test_what_kubeflow_pipelines_reads_as_it_is_meant_is_taken(line):
    assert cron.check(f" {line} ") == line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 2 * * *", r'You mean: graftline kubeflow schedule "0 0 2 \* \* \*"'),
        ("0 2 * *", "has 4 fields"),
        ("", "has 0 fields"),
        ("0 0 24 * * *", "'24' in the field hour is not within 0 to 23"),
        ("0 0 2 * * 7", "day of the week is not within 0 to 6"),
        ("0 0 2 0 * *", "day of the month is not within 1 to 31"),
        ("0 0 5-2 * * *", "ends before it begins"),
        ("0 */0 * * * *", "step of 0"),
        ("0 0 2 L * *", "'L' in the field day of the month"),
        ("0 0 2 * * tomorrow", "day of the week"),
        ("0 70 2 * *", "'70' in the field hour"),
        ("@nightly", "@daily"),
        ("@every", "@every 6h"),
    ],
)
def test_any_other_time_is_refused_with_the_line_that_was_meant(line, said):
    with pytest.raises(UserError, match=said):
        cron.check(line)


def test_a_schedule_follows_the_newest_version_one_run_at_a_time_and_catches_nothing_up(
    on_cluster,
    cluster,
    capsys,
):
    assert kubeflow(on_cluster, "schedule", NIGHTLY, "--window", "3") == 0
    [made] = cluster.schedules.values()
    [pipeline] = cluster.pipelines
    assert made["pipeline_version_reference"] == {"pipeline_id": pipeline}
    assert made["trigger"] == {"cron_schedule": {"cron": NIGHTLY}}
    assert (made["max_concurrency"], made["no_catchup"]) == ("1", True)
    assert made["status"] == "ENABLED"
    assert made["runtime_config"]["parameters"] == {"window": 3}
    assert "the newest version" in capsys.readouterr().out


def test_a_crontab_of_five_fields_is_refused_before_anything_is_asked(
    on_cluster,
    cluster,
    capsys,
):
    assert kubeflow(on_cluster, "schedule", "0 2 * * *") == 2
    assert 'graftline kubeflow schedule "0 0 2 * * *"' in capsys.readouterr().err
    assert not cluster.requests


def test_the_same_schedule_again_changes_nothing_and_another_one_replaces_it(
    on_cluster,
    cluster,
):
    assert kubeflow(on_cluster, "schedule", NIGHTLY) == 0
    [first] = cluster.schedules
    assert kubeflow(on_cluster, "schedule", NIGHTLY) == 0
    assert list(cluster.schedules) == [first]
    assert kubeflow(on_cluster, "schedule", "0 0 3 * * *") == 0
    [second] = cluster.schedules.values()
    assert second["recurring_run_id"] != first
    assert second["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert second["status"] == "ENABLED"


def test_a_replacement_that_was_interrupted_is_put_right_by_the_next(
    on_cluster,
    cluster,
    monkeypatch,
):
    assert kubeflow(on_cluster, "schedule", NIGHTLY) == 0

    def broken(api: Api, schedule_id: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Api, "delete_schedule", broken)
        assert kubeflow(on_cluster, "schedule", "0 0 3 * * *") == 130
    # At no moment do two of them start runs.
    assert sorted(one["status"] for one in cluster.schedules.values()) == ["DISABLED", "ENABLED"]
    assert kubeflow(on_cluster, "schedule", "0 0 3 * * *") == 0
    [only] = cluster.schedules.values()
    assert (only["status"], only["trigger"]["cron_schedule"]["cron"]) == ("ENABLED", "0 0 3 * * *")


def test_a_schedule_that_an_interruption_left_paused_is_not_passed_over_in_silence(
    on_cluster, cluster, capsys, monkeypatch
):
    assert kubeflow(on_cluster, "schedule", NIGHTLY) == 0

    def broken(api: Api, schedule_id: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Api, "enable_schedule", broken)
        assert kubeflow(on_cluster, "schedule", "0 0 3 * * *") == 130
    capsys.readouterr()
    assert kubeflow(on_cluster, "submit") == 0
    assert "the schedule is paused" in capsys.readouterr().out
    assert kubeflow(on_cluster, "schedule", "0 0 3 * * *") == 0
    [only] = cluster.schedules.values()
    assert only["status"] == "ENABLED"


@pytest.mark.parametrize("way", ["pins", "copies"])
def test_on_a_backend_that_pins_versions_the_schedule_is_replaced_at_each_new_one(
    on_cluster, cluster, capsys, way
):
    setattr(cluster, way, True)
    assert kubeflow(on_cluster, "schedule", NIGHTLY, "--window", "2") == 0
    assert "keeps the version of now" in capsys.readouterr().out
    assert kubeflow(on_cluster, "schedule", "--pause") == 0
    package(on_cluster / "kubeflow.yaml", sdkVersion="other")
    assert kubeflow(on_cluster, "submit") == 0
    [renewed] = cluster.schedules.values()
    assert at(renewed) == cluster.versions[-1]["pipeline_spec" if way == "copies" else VERSION]
    assert renewed["runtime_config"]["parameters"] == {"window": 2}
    assert renewed["trigger"]["cron_schedule"]["cron"] == NIGHTLY
    assert renewed["status"] == "DISABLED"
    assert kubeflow(on_cluster, "submit") == 0
    assert list(cluster.schedules.values()) == [renewed], "the version is the same"


@pytest.mark.parametrize("way", ["pins", "copies"])
def test_a_schedule_that_was_not_replaced_after_an_upload_is_so_by_the_next_submission(
    on_cluster, cluster, monkeypatch, way
):
    setattr(cluster, way, True)
    assert kubeflow(on_cluster, "schedule", NIGHTLY) == 0
    [old] = cluster.schedules
    package(on_cluster / "kubeflow.yaml", sdkVersion="other")

    def broken(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(schedule, "renew", broken)
        assert kubeflow(on_cluster, "submit") == 130
    assert list(cluster.schedules) == [old]
    assert kubeflow(on_cluster, "submit") == 0
    [renewed] = cluster.schedules.values()
    assert at(renewed) == cluster.versions[-1]["pipeline_spec" if way == "copies" else VERSION]
    assert renewed["status"] == "ENABLED"


def at(made: dict[str, Any]) -> Any:
    """The version that a schedule stays at, or its package."""
    return made.get("pipeline_spec") or made["pipeline_version_reference"][VERSION]


def test_a_schedule_that_follows_the_newest_version_is_left_alone_by_a_new_one(
    on_cluster,
    cluster,
):
    assert kubeflow(on_cluster, "schedule", NIGHTLY) == 0
    before = list(cluster.schedules)
    package(on_cluster / "kubeflow.yaml", sdkVersion="other")
    assert kubeflow(on_cluster, "submit") == 0
    assert list(cluster.schedules) == before


def test_a_schedule_is_listed_paused_resumed_and_deleted(on_cluster, cluster, capsys):
    assert kubeflow(on_cluster, "schedule", "--list") == 0
    assert "No schedule" in capsys.readouterr().out
    assert kubeflow(on_cluster, "schedule", "--pause") == 2
    assert kubeflow(on_cluster, "schedule", NIGHTLY) == 0
    assert kubeflow(on_cluster, "schedule", "--pause") == 0
    capsys.readouterr()
    assert kubeflow(on_cluster, "schedule", "--list", "--json") == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert (listed["cron"], listed["enabled"], listed["version"]) == (NIGHTLY, False, "")
    assert kubeflow(on_cluster, "schedule", "--resume") == 0
    assert next(iter(cluster.schedules.values()))["status"] == "ENABLED"
    assert kubeflow(on_cluster, "schedule", "--delete") == 0
    assert not cluster.schedules


def test_one_thing_at_a_time_is_asked_of_a_schedule(on_cluster, capsys):
    assert kubeflow(on_cluster, "schedule") == 2
    assert kubeflow(on_cluster, "schedule", NIGHTLY, "--pause") == 2
    assert kubeflow(on_cluster, "schedule", "--delete", "--pause") == 2


def test_schedules_of_others_in_the_experiment_are_left_alone(on_cluster, cluster):
    assert kubeflow(on_cluster, "schedule", NIGHTLY) == 0
    [own] = cluster.schedules.values()
    for number in range(3):
        other = {**own, "recurring_run_id": f"other-{number}", "display_name": "somebody's"}
        cluster.schedules[f"other-{number}"] = other
    assert kubeflow(on_cluster, "schedule", "--delete") == 0
    assert len(cluster.schedules) == 3


def test_a_copy_of_the_package_counts_as_pinned():
    found = schedule.Schedule.of({"recurring_run_id": "1", "pipeline_spec": {"root": {}}})
    assert found.version == "a copy"
    assert ApiConfig().address == ""
