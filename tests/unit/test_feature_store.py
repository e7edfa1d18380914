"""The store of features: found again, torn, damaged, written by two, limited."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from graftline.components.trainer.feature_store import FeatureStore, keep_within
from graftline.serving.errors import UserError

IDS = np.array([7, 3, 9], np.uint64)
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


def filled(folder: Path | None) -> FeatureStore:
    store = FeatureStore(folder, (4,))
    store.append(IDS, ROWS)
    return store


def test_rows_are_found_by_image_in_any_order(tmp_path):
    store = filled(tmp_path)
    np.testing.assert_array_equal(store.read(store.find(IDS[[2, 0]])), ROWS[[2, 0]])
    assert store.find(np.array([8, 3], np.uint64)).tolist() == [-1, 1]


def test_an_empty_store_knows_nothing(tmp_path):
    assert FeatureStore(tmp_path, (4,)).find(IDS).tolist() == [-1, -1, -1]


def test_the_next_process_finds_them_again(tmp_path):
    filled(tmp_path)
    store = FeatureStore(tmp_path, (4,))
    np.testing.assert_array_equal(store.read(store.find(IDS)), ROWS)


def test_without_a_folder_nothing_is_left_behind(tmp_path):
    store = FeatureStore(None, (4,), scratch=tmp_path)
    store.append(IDS, ROWS)
    np.testing.assert_array_equal(store.read(store.find(IDS)), ROWS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "cut"), [("0.rows", 1), ("0.rows", 17), ("0.index", 5)])
def test_after_a_torn_write_the_whole_rows_count_and_more_can_be_added(tmp_path, name, cut):
    filled(tmp_path)
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - cut)
    store = FeatureStore(tmp_path, (4,))
    found = store.find(IDS) >= 0
    assert found.tolist() in ([True, True, False], [True, False, False])
    store.append(IDS[~found], ROWS[~found])
    again = FeatureStore(tmp_path, (4,))
    np.testing.assert_array_equal(again.read(again.find(IDS)), ROWS)
    assert again.forget_damaged(IDS) == 0


def test_a_damaged_row_is_forgotten_and_may_be_written_anew(tmp_path):
    filled(tmp_path)
    content = bytearray((tmp_path / "0.rows").read_bytes())
    content[20] ^= 1
    (tmp_path / "0.rows").write_bytes(content)
    store = FeatureStore(tmp_path, (4,))
    assert store.forget_damaged(IDS) == 1
    assert store.find(IDS).tolist() == [0, -1, 2]
    store.append(IDS[1:2], ROWS[1:2])
    np.testing.assert_array_equal(store.read(store.find(IDS)), ROWS)
    again = FeatureStore(tmp_path, (4,))
    np.testing.assert_array_equal(again.read(again.find(IDS)), ROWS)


@pytest.mark.parametrize("place", [0, 8], ids=["id", "checksum"])
def test_a_row_whose_entry_in_the_index_is_damaged_is_not_taken_for_right(tmp_path, place):
    filled(tmp_path)
    content = bytearray((tmp_path / "0.index").read_bytes())
    content[len(content) // 3 + place] ^= 1
    (tmp_path / "0.index").write_bytes(content)
    store = FeatureStore(tmp_path, (4,))
    store.forget_damaged(IDS)
    found = store.find(IDS)
    assert found.tolist() == [0, -1, 2]


def test_two_that_write_at_once_do_not_disturb_each_other(tmp_path):
    one = filled(tmp_path)
    other = FeatureStore(tmp_path, (4,))
    np.testing.assert_array_equal(other.read(other.find(IDS)), ROWS)
    other.append(np.array([1], np.uint64), -ROWS[:1])
    one.append(np.array([2], np.uint64), ROWS[:1] + 0.5)
    np.testing.assert_array_equal(other.read(other.find(np.array([1], np.uint64))), -ROWS[:1])
    del one, other
    store = FeatureStore(tmp_path, (4,))
    assert store.find(np.array([1, 2], np.uint64)).tolist() == [-1, 3]


def test_workers_read_what_the_others_have_written(tmp_path):
    for number in range(2):
        store = FeatureStore(tmp_path, (4,), writer=number)
        store.append(IDS[number : number + 1], ROWS[number : number + 1])
    store = FeatureStore(tmp_path, (4,), writer=2)
    np.testing.assert_array_equal(store.read(store.find(IDS[:2])), ROWS[:2])
    assert store.find(IDS[2:]).tolist() == [-1]


def test_the_stores_that_were_unused_for_longest_make_room(tmp_path):
    for number, name in enumerate(("old", "older", "new")):
        filled(tmp_path / name)
        used = time.time() - (3 - number, 9, 0)[number]
        os.utime(tmp_path / name / "used", (used, used))
    keep_within(tmp_path, 100, {"new"})
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}
    keep_within(tmp_path, 0, {"new"})
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_a_full_disk_is_said_and_what_was_whole_before_is_kept(disks):
    folder = disks.mount("1m") / "store"
    store = FeatureStore(folder, (4096,))
    rows = np.ones((16, 4096), np.float32)
    with pytest.raises(UserError, match="disk is full"):
        for start in range(0, 160, 16):
            store.append(np.arange(start, start + 16).astype(np.uint64), rows)
    del store
    again = FeatureStore(folder, (4096,))
    known = np.flatnonzero(again.find(np.arange(160).astype(np.uint64)) >= 0)
    assert len(known) >= 16
    assert again.forget_damaged(known.astype(np.uint64)) == 0
