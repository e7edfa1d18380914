"""Going back and forth between versions, and verifying them."""

from pathlib import Path

import pytest

from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.manifest import Manifest, Problem


@pytest.fixture
def base_path(tmp_path: Path) -> BasePath:
    """Versions 1, 2 and 3; 3 is in service."""
    base_path = BasePath(tmp_path / "serving" / "flowers")
    for model_id in "abc":
        trained = saved_model(tmp_path / model_id)
        base_path.publish(trained, Manifest(model="flowers", model_id=model_id))
    return base_path


def saved_model(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(b"weights")
    return folder


def states(base_path: BasePath) -> dict[int, str]:
    return {version.number: version.state for version in base_path.versions()}


def test_a_rollback_goes_to_the_version_below_and_deletes_nothing(base_path):
    assert base_path.rollback().version == 2
    assert states(base_path) == {1: "present", 2: "in service", 3: "withdrawn"}
    assert base_path.verify(3) == {3: []}


def test_a_rollback_skips_withdrawn_versions(base_path):
    base_path.withdraw(2)
    assert base_path.rollback().version == 1


def test_a_rollback_to_a_version_withdraws_every_one_above_it(base_path):
    assert base_path.rollback(1).withdrawn == (2, 3)
    assert states(base_path) == {1: "in service", 2: "withdrawn", 3: "withdrawn"}


def test_a_rollback_to_a_withdrawn_version_restores_it(base_path):
    base_path.rollback(1)
    base_path.rollback(3)
    assert states(base_path) == {1: "present", 2: "withdrawn", 3: "in service"}
    base_path.rollback(2)
    assert states(base_path) == {1: "present", 2: "in service", 3: "withdrawn"}


def test_a_rollback_to_the_version_in_service_changes_nothing(base_path):
    assert base_path.rollback(3) is None
    assert len(base_path.history()) == 3


def test_a_rollback_withdraws_an_incomplete_version_above_the_target(base_path):
    (base_path.root / "4").mkdir()
    assert base_path.rollback(3).withdrawn == (4,)
    assert states(base_path) == {1: "present", 2: "present", 3: "in service", 4: "withdrawn"}


def test_below_the_lowest_version_there_is_nothing_to_go_back_to(base_path):
    base_path.rollback(1)
    with pytest.raises(UserError, match="none below it to go back to"):
        base_path.rollback()
    assert base_path.in_service() == 1


def test_a_server_that_looks_at_any_moment_goes_from_the_one_version_to_the_other(
    base_path, monkeypatch
):
    seen = []
    rename = Path.rename

    def observed(path: Path, target: Path) -> Path:
        result = rename(path, target)
        seen.append(base_path.in_service())
        return result

    monkeypatch.setattr(Path, "rename", observed)
    base_path.rollback(1)
    assert seen == [3, 1]
    base_path.rollback(2)
    assert seen == [3, 1, 2]


def test_a_rollback_that_fails_half_way_is_undone(base_path):
    blocking = base_path.root / "withdrawn" / "3"
    blocking.mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        base_path.rollback(1)
    blocking.rmdir()
    assert states(base_path) == {1: "present", 2: "present", 3: "in service"}
    assert len(base_path.history()) == 3


def test_a_version_that_does_not_exist_is_named_with_those_that_do(base_path):
    for change in (base_path.rollback, base_path.restore, base_path.withdraw, base_path.verify):
        with pytest.raises(UserError, match=r"no version 12 in .*there are: 1, 2, 3"):
            change(12)


def test_before_anything_is_published_the_way_to_publish_is_named(tmp_path):
    base_path = BasePath(tmp_path / "nothing")
    with pytest.raises(UserError, match="graftline run"):
        base_path.rollback()
    with pytest.raises(UserError, match="graftline run"):
        base_path.restore(1)
    assert not base_path.root.exists()


def test_a_version_is_withdrawn_and_restored(base_path):
    base_path.withdraw(3, "too slow")
    assert states(base_path) == {1: "present", 2: "in service", 3: "withdrawn"}
    base_path.restore(3, "fast again")
    assert states(base_path) == {1: "present", 2: "present", 3: "in service"}
    assert [event.reason for event in base_path.history()][-2:] == ["too slow", "fast again"]


def test_withdrawing_and_restoring_twice_changes_nothing(base_path):
    assert base_path.restore(3) is None
    base_path.withdraw(3)
    assert base_path.withdraw(3) is None


def test_the_only_version_left_is_never_withdrawn(base_path):
    base_path.rollback(1)
    (base_path.root / "4").mkdir()
    with pytest.raises(UserError, match="only one"):
        base_path.withdraw(1)
    assert base_path.withdraw(4) is not None
    assert base_path.in_service() == 1


def test_both_folders_of_a_number_that_stands_there_twice_are_withdrawn(base_path):
    saved_model(base_path.root / "003")
    base_path.withdraw(3)
    assert base_path.in_service() == 2


def test_what_was_published_verifies(base_path):
    base_path.withdraw(2)
    assert base_path.verify() == {1: [], 2: [], 3: []}


def test_changed_missing_and_added_files_are_named(base_path):
    version = base_path.root / "3"
    (version / "saved_model.pb").write_bytes(b"graPh")
    (version / "variables" / "variables.index").unlink()
    (version / "variables" / "more").write_bytes(b"")
    (version / "assets").symlink_to("/etc")
    assert base_path.verify() == {
        1: [],
        2: [],
        3: [
            Problem("assets", "added"),
            Problem("saved_model.pb", "changed"),
            Problem("variables/more", "added"),
            Problem("variables/variables.index", "missing"),
        ],
    }


@pytest.mark.parametrize("path", ["../1/saved_model.pb", "/etc/passwd", "variables/../../x"])
def test_paths_in_a_manifest_that_lead_out_of_the_version_are_never_opened(base_path, path):
    manifest = base_path.root / "3" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("variables/variables.index", path))
    assert Problem(path, "missing") in base_path.verify(3)[3]


def test_a_file_changed_together_with_its_manifest_is_found(base_path):
    version = base_path.root / "3"
    forged = BasePath(version.parents[1] / "forged")
    (version / "saved_model.pb").write_bytes(b"other")
    forged.publish(version, Manifest(model="flowers", model_id="forged"))
    (version / "manifest.json").write_bytes((forged.root / "1" / "manifest.json").read_bytes())
    (version / "model_card.md").write_bytes((forged.root / "1" / "model_card.md").read_bytes())
    assert base_path.verify(3) == {3: [Problem("manifest.json", "changed")]}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_does_not_verify(base_path, content):
    (base_path.root / "3" / "manifest.json").write_bytes(content)
    assert base_path.verify(3) == {3: [Problem("manifest.json", "unreadable")]}


def test_a_version_that_is_not_what_was_published_is_not_put_in_service(base_path):
    for number in (1, 2):
        (base_path.root / str(number) / "saved_model.pb").write_bytes(b"other")
    with pytest.raises(UserError, match=r"Version 2 is not what was published \(saved_model.pb"):
        base_path.rollback()
    base_path.withdraw(1)
    with pytest.raises(UserError, match="Version 1 is not what was published"):
        base_path.restore(1)
    assert base_path.in_service() == 3


def test_a_version_whose_manifest_was_removed_is_not_put_in_service(base_path):
    (base_path.root / "2" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json missing"):
        base_path.rollback()


def test_an_incomplete_version_is_not_put_in_service(base_path):
    (base_path.root / "2").rename(base_path.root / "2.partial")
    (base_path.root / "2").mkdir()
    with pytest.raises(UserError, match=r"Version 2 is incomplete: .* lacks saved_model.pb"):
        base_path.rollback(2)


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
def test_a_version_that_is_still_being_copied_is_incomplete_whatever_file_is_to_come(
    base_path, tmp_path, name
):
    copied = saved_model(base_path.root / "4") / "variables" / name
    copied.rename(tmp_path / name)
    assert states(base_path)[4] == "incomplete"
    assert base_path.in_service() == 3
    assert base_path.verify(4) == {4: [Problem(f"variables/{name}", "missing")]}
    with pytest.raises(UserError, match=f"Version 4 is incomplete: .* lacks variables/{name}"):
        base_path.require_servable(4)
    (tmp_path / name).rename(copied)
    assert states(base_path)[4] == "in service"


def test_a_version_of_another_program_can_be_gone_back_to_but_does_not_verify(tmp_path):
    base_path = BasePath(tmp_path)
    saved_model(tmp_path / "1700000000")
    saved_model(tmp_path / "1700000001")
    assert base_path.rollback().version == 1700000000
    assert base_path.verify(1700000000)[1700000000] == [Problem("manifest.json", "missing")]


def test_the_folder_of_a_version_that_serves_is_found_and_of_a_withdrawn_one_is_not(base_path):
    assert base_path.folder() == base_path.root / "3"
    assert base_path.folder(1) == base_path.root / "1"
    base_path.withdraw(3)
    assert base_path.folder() == base_path.root / "2"
    with pytest.raises(UserError, match=r"no version 3 .* there are: 1, 2"):
        base_path.folder(3)
    with pytest.raises(UserError, match="graftline run"):
        BasePath(base_path.root / "empty").folder()
