"""`graftline drop` and `graftline drops`: what they print, for people and as JSON."""

import json
from pathlib import Path

import pytest
from drops import folders

from graftline.pipeline.cli.main import main


def graftline(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_a_drop_tells_what_became_of_the_images_and_drops_lists_it(tmp_path, capsys):
    # Square brackets are markup to the library that prints the table.
    source = folders(tmp_path / "images", 10, classes=["[red] rose", "sun flower"])
    (source / "sun flower" / "broken.png").write_bytes(b"no image")
    project = tmp_path / "p"
    graftline("init", project, "--images", source)
    capsys.readouterr()

    assert graftline("drop", source, "--project", project) == 0

    said = capsys.readouterr().out
    assert "Span 1 version 1: 20 images taken in, " in said.splitlines()[0]
    assert said.splitlines()[0].endswith("to test with.")
    assert "[red] rose" in said
    assert "not-an-image" in said
    assert str(project / "quarantine" / "span-1" / "version-1" / "quarantine.jsonl") in said
    assert said.splitlines()[-1] == "Next: graftline run --span 1"

    assert graftline("drops", "--project", project) == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert graftline("drops", "--project", project, "--json") == 0
    [span] = json.loads(capsys.readouterr().out)
    for label in ("[red] rose", "sun flower"):
        of_split = [str(span["counts"][split].get(label, 0)) for split in ("train", "eval", "test")]
        assert f"{label} {' / '.join(of_split)} 10".split() in listed
    assert (span["span"], span["version"], span["images"]) == (1, 1, 20)
    assert span["quarantined"] == {"not-an-image": 1}
    assert span["trained"] is span["refused"] is None
    assert Path(span["path"]).is_dir()


def test_a_source_that_is_none_is_refused_before_anything_is_loaded(tmp_path, capsys):
    project = tmp_path / "p"
    graftline("init", project, "--images", folders(tmp_path / "images", 1))
    capsys.readouterr()
    assert graftline("drop", tmp_path / "nowhere", "--project", project) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (project / "spans").exists()
