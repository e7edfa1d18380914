"""Publishing where it must fail: full, read-only, obstructed; and readers meanwhile."""

import logging
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from graftline.serving import base_path as base_path_module
from graftline.serving import history
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.manifest import Manifest

MANIFEST = Manifest(model="flowers", model_id="a")


def saved_model(folder: Path, size: int = 5) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(b"x" * size)
    return folder


@pytest.fixture
def small_disk(disks) -> Path:
    return disks.mount("256k")


def test_a_full_disk_is_said_and_leaves_nothing_behind(small_disk, tmp_path):
    base_path = BasePath(small_disk / "flowers")
    with pytest.raises(UserError, match=r"Cannot publish .*No space left on device.*Free space"):
        base_path.publish(saved_model(tmp_path / "trained", size=1 << 20), MANIFEST)
    assert base_path.versions() == []
    assert [p.name for p in (base_path.root / ".graftline").iterdir()] == ["publish.lock"]
    assert base_path.publish(saved_model(tmp_path / "smaller"), MANIFEST) == 1


def test_a_rollback_on_a_full_disk_works_and_says_that_it_is_not_recorded(
    small_disk, tmp_path, caplog
):
    base_path = BasePath(small_disk / "flowers")
    for model_id in "abc":
        trained = saved_model(tmp_path / model_id)
        base_path.publish(trained, Manifest(model="flowers", model_id=model_id))
    base_path.rollback()
    _fill(base_path.root / history.FILE_NAME, small_disk)
    with caplog.at_level(logging.WARNING):
        base_path.rollback(reason="disk is full too")
    assert base_path.in_service() == 1
    assert "could not be recorded" in caplog.text
    assert "disk is full too" in caplog.text


def _fill(log: Path, disk: Path) -> None:
    """Leaves no free page, not even at the end of the log."""
    with log.open("ab") as stream:
        stream.write(b" " * (-log.stat().st_size % 4096 - 1) + b"\n")
    with (disk / "filling").open("wb", buffering=0) as stream, pytest.raises(OSError):
        while True:
            stream.write(b"x" * 4096)


def test_a_read_only_disk_is_said(disks, small_disk, tmp_path):
    base_path = BasePath(small_disk / "flowers")
    base_path.publish(saved_model(tmp_path / "trained"), MANIFEST)
    disks.make_read_only(small_disk)
    with pytest.raises(UserError, match=r"Read-only file system.*Make it writable"):
        base_path.publish(tmp_path / "trained", Manifest(model="flowers", model_id="b"))
    with pytest.raises(UserError, match=r"Cannot roll back.*Read-only file system"):
        base_path.rollback(1)
    assert base_path.in_service() == 1
    assert base_path.verify() == {1: []}


def test_a_base_path_that_cannot_be_made_on_a_read_only_disk_is_said(disks, small_disk, tmp_path):
    disks.make_read_only(small_disk)
    with pytest.raises(UserError, match="Read-only file system"):
        BasePath(small_disk / "a" / "b").publish(saved_model(tmp_path / "trained"), MANIFEST)


def test_a_user_without_rights_is_told_so_and_can_still_look(stranger, tmp_path):
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o755)
        base_path = BasePath(Path(shared) / "flowers")
        trained = saved_model(Path(shared) / "trained")
        for model_id in "ab":
            base_path.publish(trained, Manifest(model="flowers", model_id=model_id))
        stranger()
        with pytest.raises(UserError, match=r"Cannot publish.*Permission denied.*Make it writable"):
            base_path.publish(trained, Manifest(model="flowers", model_id="c"))
        with pytest.raises(UserError, match=r"Cannot publish.*Permission denied"):
            BasePath(Path(shared) / "new" / "roses").publish(trained, MANIFEST)
        with pytest.raises(UserError, match=r"Cannot roll back.*Permission denied"):
            base_path.rollback()
        assert base_path.in_service() == 2
        assert base_path.verify() == {1: [], 2: []}
        os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_said(stranger):
    with tempfile.TemporaryDirectory() as private:
        base_path = BasePath(Path(private) / "flowers")
        base_path.root.mkdir()
        stranger()
        for look in (base_path.versions, base_path.rollback, base_path.history):
            with pytest.raises(UserError, match="Permission denied"):
                look()
        os.seteuid(0)


@pytest.mark.parametrize("obstacle", ["serving", "serving/flowers", "serving/flowers/.graftline"])
def test_a_file_in_the_place_of_a_folder_is_said(tmp_path, obstacle):
    (tmp_path / obstacle).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / obstacle).write_text("in the way")
    base_path = BasePath(tmp_path / "serving" / "flowers")
    with pytest.raises(UserError, match="Something else stands where a folder is needed"):
        base_path.publish(saved_model(tmp_path / "trained"), MANIFEST)


def test_listing_a_file_is_said(tmp_path):
    (tmp_path / "flowers").write_text("a file")
    with pytest.raises(UserError, match="Cannot list the versions"):
        BasePath(tmp_path / "flowers").versions()


def test_an_interrupted_copy_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    base_path = BasePath(tmp_path / "flowers")
    monkeypatch.setattr(base_path_module.manifest, "hash_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        base_path.publish(saved_model(tmp_path / "trained"), MANIFEST)
    assert base_path.versions() == []
    assert not list(base_path.root.glob(".graftline/version-*"))


def test_what_a_dead_publisher_left_is_removed_by_the_next(tmp_path):
    base_path = BasePath(tmp_path / "flowers")
    saved_model(base_path.root / ".graftline" / "version-0123")
    assert base_path.publish(saved_model(tmp_path / "trained"), MANIFEST) == 1
    assert not list(base_path.root.glob(".graftline/version-*"))


def test_a_change_waits_for_another_one_and_says_so_when_it_takes_too_long(tmp_path, monkeypatch):
    base_path = BasePath(tmp_path / "flowers")
    base_path.publish(saved_model(tmp_path / "trained"), MANIFEST)
    monkeypatch.setattr(base_path_module, "_CHANGE_TIMEOUT_SECONDS", 0.1)
    holder = subprocess.Popen(
        ["flock", str(base_path.root / ".graftline" / "change.lock"), "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(UserError, match="Another process has held"):
        base_path.rollback(1)
    holder.communicate(b"\n")
    assert base_path.rollback(1) is None


def test_a_reader_never_sees_an_incomplete_version(tmp_path):
    base_path = BasePath(tmp_path / "flowers")
    trained = saved_model(tmp_path / "trained")
    complete = {"saved_model.pb", "variables", "manifest.json", "model_card.md"}
    done = threading.Event()
    seen: list[set[str]] = []

    def read() -> None:
        while not done.is_set():
            versions = [path for path in base_path.root.iterdir() if path.name.isdigit()]
            seen.extend({path.name for path in version.iterdir()} for version in versions)

    base_path.publish(trained, MANIFEST)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for model_id in range(50):
            base_path.publish(trained, Manifest(model="flowers", model_id=str(model_id)))
    finally:
        done.set()
        reader.join()
    assert len(seen) > 50
    assert all(listing == complete for listing in seen)
