"""Which folders under a base path are versions that should be loaded."""

from pathlib import Path

import pytest
from tensorflow_serving.config import file_system_storage_path_source_pb2

from graftline.serving.server.sources import Source
from graftline.serving.server.status import Code, Failure

Policy = file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy


def version(base: Path, name: str) -> Path:
    (base / name).mkdir(parents=True)
    (base / name / "saved_model.pb").touch()
    return base / name


def latest(count: int) -> Policy:
    policy = Policy()
    policy.latest.num_versions = count
    return policy


def every() -> Policy:
    policy = Policy()
    policy.all.SetInParent()
    return policy


def specific(*versions: int) -> Policy:
    policy = Policy()
    policy.specific.SetInParent()
    policy.specific.versions.extend(versions)
    return policy


def aspired(base: Path, policy: Policy | None = None, **options: bool) -> dict[int, str]:
    source = Source("m", str(base), policy or Policy(), **options)
    return {number: path.name for number, path in source.aspired().items()}


def test_without_a_policy_the_highest_number_is_taken(tmp_path):
    for name in ("2", "10", "9"):
        version(tmp_path, name)
    assert aspired(tmp_path) == {10: "10"}


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        (latest(0), [10]),
        (latest(2), [9, 10]),
        (latest(7), [2, 9, 10]),
        (every(), [2, 9, 10]),
        (specific(9), [9]),
        (specific(9, 2), [2, 9]),
        (specific(9, 77), [9]),
        (specific(), []),
    ],
)
def test_a_policy_chooses(tmp_path, policy, numbers):
    for name in ("2", "10", "9"):
        version(tmp_path, name)
    assert sorted(aspired(tmp_path, policy)) == numbers


@pytest.mark.parametrize("name", ["00000123", "+123", " 123 "])
def test_a_padded_number_is_a_version_and_keeps_its_folder(tmp_path, name):
    version(tmp_path, name)
    assert aspired(tmp_path) == {123: name}
    assert aspired(tmp_path, specific(123)) == {123: name}


@pytest.mark.parametrize(
    "name", ["1.tmp", "v1", "1_new", ".1", "withdrawn", "99999999999999999999"]
)
def test_another_name_is_none(tmp_path, name):
    version(tmp_path, name)
    assert aspired(tmp_path) == {}


def test_a_number_below_zero_is_one(tmp_path):
    version(tmp_path, "-3")
    assert aspired(tmp_path) == {-3: "-3"}


def test_of_two_equal_numbers_the_last_name_is_taken(tmp_path):
    version(tmp_path, "001")
    version(tmp_path, "1")
    assert aspired(tmp_path) == {1: "1"}


def test_an_incomplete_version_is_not_taken_and_the_one_below_is(tmp_path):
    version(tmp_path, "1")
    (tmp_path / "2").mkdir()
    (tmp_path / "3").touch()
    assert aspired(tmp_path) == {1: "1"}
    (tmp_path / "2" / "saved_model.pbtxt").touch()
    assert aspired(tmp_path) == {2: "2"}


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        # Of a model without variables.
        ([], True),
        (["variables.index"], False),
        (["variables.data-00000-of-00001"], False),
        (["variables.index", "variables.data-00000-of-00001"], True),
        (["variables.index", "variables.data-00001-of-00002"], False),
        (["variables.index", "variables.data-00000-of-00002"], False),
        (
            ["variables.index", "variables.data-00000-of-00002", "variables.data-00001-of-00002"],
            True,
        ),
    ],
)
def test_a_version_whose_variables_are_still_being_copied_is_not_taken(tmp_path, files, whole):
    version(tmp_path, "1")
    variables = version(tmp_path, "2") / "variables"
    variables.mkdir()
    for name in files:
        (variables / name).touch()
    assert aspired(tmp_path) == ({2: "2"} if whole else {1: "1"})


def test_a_folder_with_only_a_tflite_model_is_a_version_where_that_is_preferred(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.tflite").touch()
    assert aspired(tmp_path) == {}
    assert aspired(tmp_path, tflite=True) == {1: "1"}


def test_an_empty_base_path_asks_for_nothing_and_says_so_once(tmp_path, caplog):
    source = Source("m", str(tmp_path), Policy())
    assert source.aspired() == source.aspired() == {}
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "No versions of servable m found under base path" in said[0]


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_base_path_that_is_no_folder_is_a_failure(tmp_path, kind):
    base = tmp_path / "base"
    if kind == "a file":
        base.touch()
    with pytest.raises(Failure, match=r"Could not find base path .* for servable m") as failure:
        aspired(base)
    assert failure.value.code is Code.INVALID_ARGUMENT
