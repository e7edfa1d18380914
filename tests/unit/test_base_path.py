"""Publishing into a base path: numbering, what a version contains, what the record says."""

import hashlib
import json
from pathlib import Path

import pytest

from graftline.serving import history
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.manifest import Manifest, Measure

FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"weights",
    "assets.extra/labels.txt": b"daisy\nrose\n",
}


@pytest.fixture
def base_path(tmp_path: Path) -> BasePath:
    return BasePath(tmp_path / "serving" / "flowers")


def saved_model(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def publish(base_path: BasePath, model_id: str) -> int:
    measures = (
        Measure(metric="accuracy", slice="overall", candidate=0.91, threshold=0.8, passed=True),
        Measure(metric="recall", slice="rose", candidate=0.5, note="4 images", passed=None),
    )
    manifest = Manifest(
        model="flowers",
        model_id=model_id,
        classes=("daisy", "rose"),
        measures=measures,
        spans=((1, 1), (2, 3)),
        configuration={"trainer": {"epochs": 3}},
        code_revision="0c0ffee",
        run_id="run-7",
    )
    return base_path.publish(saved_model(base_path.root.parents[1] / "trained"), manifest)


def states(base_path: BasePath) -> dict[int, str]:
    return {version.number: version.state for version in base_path.versions()}


def test_versions_count_up_from_1_and_the_highest_is_in_service(base_path):
    assert base_path.versions() == []
    assert base_path.in_service() is None
    assert [publish(base_path, name) for name in "abc"] == [1, 2, 3]
    assert states(base_path) == {1: "present", 2: "present", 3: "in service"}


def test_version_10_is_above_version_9(base_path):
    saved_model(base_path.root / "9")
    assert publish(base_path, "a") == 10
    assert base_path.in_service() == 10


def test_names_are_parsed_as_tensorflow_serving_parses_them(base_path):
    for name in ("00000123", "+5", "-3", " 7 ", "1.tmp", "v1", ".1", "٧", "1_0", "9" * 19):
        saved_model(base_path.root / name)
    assert states(base_path) == {-3: "present", 5: "present", 7: "present", 123: "in service"}


def test_of_two_names_with_one_number_the_last_is_in_service(base_path):
    saved_model(base_path.root / "001")
    saved_model(base_path.root / "1")
    assert base_path.folder().name == "1"


def test_an_incomplete_folder_is_listed_and_never_in_service_and_its_number_not_reused(base_path):
    publish(base_path, "a")
    (base_path.root / "7" / "variables").mkdir(parents=True)
    (base_path.root / "8").write_text("a file")
    assert states(base_path) == {1: "in service", 7: "incomplete", 8: "incomplete"}
    assert publish(base_path, "b") == 9


def test_a_version_holds_the_model_and_its_manifest_and_nothing_else(base_path):
    publish(base_path, "a")
    version = base_path.root / "1"
    found = {p.relative_to(version).as_posix() for p in version.rglob("*") if p.is_file()}
    assert found == {*FILES, "manifest.json", "model_card.md"}
    for name, content in FILES.items():
        assert (version / name).read_bytes() == content


def test_the_manifest_has_the_hash_and_size_of_every_file(base_path):
    publish(base_path, "a")
    version = base_path.root / "1"
    manifest = json.loads((version / "manifest.json").read_text())
    assert set(manifest["files"]) == {*FILES, "model_card.md"}
    for name, record in manifest["files"].items():
        content = (version / name).read_bytes()
        assert record == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_the_manifest_says_where_the_version_comes_from(base_path):
    publish(base_path, "a")
    manifest = base_path.versions()[-1].manifest
    assert (manifest.version, manifest.model_id, manifest.run_id) == (1, "a", "run-7")
    assert manifest.spans == ((1, 1), (2, 3))
    assert manifest.configuration == {"trainer": {"epochs": 3}}
    assert manifest.accuracy == 0.91
    assert manifest.created.utcoffset().total_seconds() == 0


def test_the_model_card_is_readable_and_complete(base_path):
    publish(base_path, "a")
    card = (base_path.root / "1" / "model_card.md").read_text()
    for part in (
        "# flowers, version 1",
        "`daisy`, `rose`",
        "| accuracy | overall | 0.910 |  | 0.800 | passed |",
        "| recall | rose | 0.500 |  |  | undecidable |",
        "Spans 1-2, span 2 in version 3.",
        "* 4 images",
        "Too few test images to judge: rose.",
        "| trainer.epochs | 3 |",
        "run-7",
        "0c0ffee",
    ):
        assert part in card


def test_names_of_classes_cannot_break_the_tables_of_the_card(base_path, tmp_path):
    measure = Measure(metric="recall", slice="a|b\nc", candidate=1.0, passed=True)
    manifest = Manifest(model="m", model_id="a", classes=("a|b",), measures=(measure,))
    base_path.publish(saved_model(tmp_path / "trained"), manifest)
    assert "| recall | a\\|b c | 1.000 |" in (base_path.root / "1" / "model_card.md").read_text()


def test_publishing_the_same_model_again_returns_the_version_that_exists(base_path):
    assert [publish(base_path, name) for name in ("a", "b", "a")] == [1, 2, 1]
    assert states(base_path) == {1: "present", 2: "in service"}
    assert [event.version for event in base_path.history()] == [1, 2]


def test_publishing_the_same_model_again_does_not_bring_back_a_withdrawn_version(base_path):
    publish(base_path, "a")
    publish(base_path, "b")
    base_path.rollback()
    assert publish(base_path, "b") == 2
    assert states(base_path) == {1: "in service", 2: "withdrawn"}


def test_a_number_is_never_issued_twice(base_path):
    for name in "abc":
        publish(base_path, name)
    base_path.rollback(1)
    assert publish(base_path, "d") == 4
    for version in base_path.versions()[1:]:
        version.path.rename(base_path.root / f"deleted-{version.number}")
    assert publish(base_path, "e") == 5


def test_there_is_no_number_above_the_highest_that_a_server_can_read(base_path):
    saved_model(base_path.root / str(2**63 - 1))
    with pytest.raises(UserError, match="no number for the next"):
        publish(base_path, "a")


def test_a_folder_without_a_saved_model_is_not_published(base_path, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no SavedModel"):
        base_path.publish(tmp_path / "empty", Manifest(model="flowers", model_id="a"))
    assert not base_path.root.exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc", "nowhere"])
def test_a_model_with_a_link_in_it_is_not_published(base_path, tmp_path, target):
    model = saved_model(tmp_path / "trained")
    (model / "assets.extra" / "link").symlink_to(target)
    with pytest.raises(UserError, match=r"assets.extra/link is neither a plain file nor a folder"):
        base_path.publish(model, Manifest(model="flowers", model_id="a"))
    assert base_path.versions() == []
    assert not list(base_path.root.glob(".graftline/version-*"))


def test_the_history_says_who_what_when_and_why(base_path):
    publish(base_path, "a")
    publish(base_path, "b")
    base_path.rollback(reason="daisies are called roses")
    published, _, back = base_path.history()
    assert (published.what, published.version, published.in_service) == ("published", 1, 1)
    assert (back.what, back.version, back.in_service, back.withdrawn) == ("rolled back", 1, 1, (2,))
    assert back.reason == "daisies are called roses"
    assert "@" in back.who
    assert published.when <= back.when


def test_a_torn_last_line_of_the_history_is_skipped_and_closed(base_path):
    publish(base_path, "a")
    path = base_path.root / history.FILE_NAME
    with path.open("ab") as stream:
        stream.write(b'{"when":"2026-11-0')
    assert [event.version for event in base_path.history()] == [1]
    publish(base_path, "b")
    assert [event.version for event in base_path.history()] == [1, 2]
    assert len(path.read_bytes().splitlines()) == 3


def test_a_publication_that_was_not_recorded_is_recorded_by_the_next_attempt(base_path):
    publish(base_path, "a")
    (base_path.root / history.FILE_NAME).unlink()
    assert publish(base_path, "a") == 1
    assert [(event.what, event.version) for event in base_path.history()] == [("published", 1)]


def test_a_manifest_that_cannot_be_read_does_not_hide_its_version(base_path):
    publish(base_path, "a")
    (base_path.root / "1" / "manifest.json").write_text('{"model": ')
    assert base_path.in_service() == 1
    assert base_path.versions()[-1].manifest is None
