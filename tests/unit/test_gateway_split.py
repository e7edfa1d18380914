"""Which version answers whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftline.serving import traffic
from graftline.serving.errors import UserError
from graftline.serving.gateway.split import Split, choose
from graftline.serving.traffic import Traffic

CALLERS = [f"key:caller-{number}" for number in range(2000)]


def on_canary(percent: float) -> set[str]:
    split = Traffic(stable=1, canary=2, canary_percent=percent)
    return {caller for caller in CALLERS if choose(split, caller) == "canary"}


def test_the_canary_gets_its_share():
    assert on_canary(0) == set()
    assert on_canary(100) == set(CALLERS)
    assert 0.07 < len(on_canary(10)) / len(CALLERS) < 0.13


def test_a_caller_stays_with_the_canary_when_its_share_grows():
    assert on_canary(5) < on_canary(10) < on_canary(50)
    assert on_canary(10) == on_canary(10)


def test_others_are_answered_by_stable_or_by_whom_the_server_chooses():
    assert choose(Traffic(stable=1), "a") == "stable"
    assert choose(Traffic(canary=2, canary_percent=0), "a") is None
    assert choose(Traffic(stable=1, canary_percent=100), "a") == "stable"
    assert choose(Traffic(), "a") is None


def test_the_file_is_followed(tmp_path: Path):
    split = Split(tmp_path)
    assert split.label("a") is None
    traffic.replace(tmp_path, Traffic(stable=3))
    assert split.label("a") is None
    split.look()
    assert split.label("a") == "stable"
    (tmp_path / traffic.FILE_NAME).unlink()
    split.look()
    assert split.label("a") is None


def test_a_file_that_becomes_wrong_changes_nothing(tmp_path: Path):
    traffic.replace(tmp_path, Traffic(stable=3))
    split = Split(tmp_path)
    (tmp_path / traffic.FILE_NAME).write_text("oops")
    split.look()
    assert split.label("a") == "stable"


def test_a_file_that_is_wrong_at_the_start_is_refused(tmp_path: Path):
    (tmp_path / traffic.FILE_NAME).write_text("oops")
    with pytest.raises(UserError, match="not a traffic file"):
        Split(tmp_path)
