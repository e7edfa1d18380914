"""Whole or not at all: a drop that is killed or has no disk leaves nothing to trip over."""

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drops import assert_nothing_left, assert_nothing_or_whole, folders, take_in

from graftline.components import progress
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.serving.errors import UserError

DUPLICATES = "looking for duplicates"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Sixteen images, and two files that are none."""
    root = folders(tmp_path / "source", 8)
    for name in ("daisy", "rose"):
        (root / name / "broken.png").write_bytes(b"no image" * 1000)
    return root


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    yield
    progress.listen(None)


def at(stage: str, action: Callable[[], object]) -> None:
    """Does something when a drop says that it has come to a stage."""
    progress.listen(lambda text: text.startswith(stage) and action())


def test_of_two_drops_at_once_the_second_is_turned_away_naming_the_first(source, tmp_path):
    other = folders(tmp_path / "other", 2, first=50)
    refusals = []

    def second() -> None:
        with pytest.raises(UserError) as refused:
            take_in(other, tmp_path)
        refusals.append(str(refused.value))

    at(DUPLICATES, second)
    take_in(source, tmp_path, max_quarantined=0.5)

    [refusal] = refusals
    assert f"Another drop is under way in this project: process {os.getpid()} takes in" in refusal
    assert str(source) in refusal
    assert assert_nothing_or_whole(tmp_path)


IN_MEMORY = beam_options(BeamConfig(), "drop")
THREADS = ("--runner=DirectRunner", "--direct_running_mode=multi_threading")


@pytest.mark.parametrize(
    ("change", "options"),
    [(functools.partial(Path.write_bytes, data=b"x"), IN_MEMORY), (Path.unlink, THREADS)],
    ids=["changed", "gone, said by another runner"],
)
def test_a_file_that_changes_after_it_was_examined_is_named(source, tmp_path, change, options):
    at(DUPLICATES, lambda: change(source / "rose" / "0.png"))
    with pytest.raises(UserError) as refused:
        take_in(source, tmp_path, max_quarantined=0.5, beam_options=options)
    assert str(refused.value) == (
        f"The file {source}/rose/0.png changed or went away while the drop was taken in. Nothing "
        "was taken in: drop again when the source is at rest."
    )
    assert_nothing_left(tmp_path)


# While listing (the holder's name, tables), examining, and writing TFRecords.
@pytest.mark.parametrize("size", ["4k", "16k", "40k", "80k", "120k"])
def test_a_disk_that_fills_at_any_moment_is_said_and_nothing_is_left(source, disks, size):
    project = disks.mount(size)
    with pytest.raises(UserError) as refused:
        take_in(source, project, max_quarantined=0.5)
    assert str(refused.value) == (
        f"The disk of {project / 'spans'} is full. Nothing was taken in and nothing is left "
        "behind: make room, about twice the size of the source, and drop again."
    )
    assert_nothing_left(project)


def test_a_read_only_disk_is_said(source, disks):
    project = disks.mount("1m")
    disks.make_read_only(project)
    with pytest.raises(UserError, match=r"cannot be written: Read-only file system.*paths\.spans"):
        take_in(source, project)


def test_folders_and_tables_that_may_not_be_written_are_said(stranger):
    with tempfile.TemporaryDirectory() as shared:
        project = Path(shared)
        project.chmod(0o755)
        source = folders(project / "source", 1)
        take_in(source, project)
        stranger()
        with pytest.raises(UserError, match=r"cannot be written: Permission denied.*Make it a fol"):
            take_in(source, project / "new")
        os.seteuid(0)
        for path in (project / "spans", *(project / "spans" / ".graftline").iterdir()):
            path.chmod(0o777)
        (project / "spans" / ".graftline").chmod(0o777)
        (project / "spans" / ".graftline" / "fingerprints.sqlite").chmod(0o444)
        stranger()
        with pytest.raises(UserError, match=r"fingerprints\.sqlite, cannot be written"):
            take_in(folders_of_a_stranger(project), project)
        os.seteuid(0)


def folders_of_a_stranger(project: Path) -> Path:
    os.seteuid(0)
    more = folders(project / "more", 1, first=50)
    os.seteuid(65534)
    return more


def test_a_file_in_the_place_of_the_spans_is_said(source, tmp_path):
    (tmp_path / "spans").write_text("in the way")
    with pytest.raises(UserError, match=r"spans.* cannot be written"):
        take_in(source, tmp_path)


def test_spans_and_quarantine_cannot_share_a_folder(source, tmp_path):
    (tmp_path / "spans").mkdir()
    (tmp_path / "quarantine").symlink_to("spans")
    with pytest.raises(UserError, match="the same folder"):
        take_in(source, tmp_path)
