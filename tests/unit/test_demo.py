"""The demo's folder: begun anew after an interruption, never at the cost of anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftline.pipeline import demo


def test_an_interrupted_demo_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo.make_folder(folder)
    (folder / "half").write_text("written")

    demo.make_folder(folder)

    assert [path.name for path in folder.iterdir()] == [demo.MARKER]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(SystemExit, match="left alone"):
        demo.make_folder(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_an_outcome_that_is_not_the_expected_one_ends_the_demo() -> None:
    with pytest.raises(SystemExit, match="the versions should be"):
        demo.expect("the versions", [1], [1, 2])
