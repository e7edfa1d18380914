"""The split of requests between two versions, as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftline.serving import traffic
from graftline.serving.errors import UserError
from graftline.serving.traffic import Traffic


def test_without_a_file_no_label_is_asked_for(tmp_path: Path) -> None:
    assert traffic.read(tmp_path) == Traffic(stable=None, canary=None, canary_percent=0.0)


def test_what_was_put_in_force_is_read(tmp_path: Path) -> None:
    split = Traffic(stable=3, canary=4, canary_percent=12.5)
    traffic.replace(tmp_path, Traffic(stable=2))
    traffic.replace(tmp_path, split)
    assert traffic.read(tmp_path) == split


def test_nothing_but_the_file_is_left_behind(tmp_path: Path) -> None:
    traffic.replace(tmp_path, Traffic(stable=2))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [traffic.FILE_NAME]


@pytest.mark.parametrize(
    "content", ['{"stable": 3', '{"stable": "three"}', '{"canary_percent": 101}', "[]"]
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / traffic.FILE_NAME).write_text(content)
    with pytest.raises(UserError, match=r"traffic\.json is not a traffic file"):
        traffic.read(tmp_path)
