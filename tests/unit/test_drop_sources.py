"""Folders as a source: which images are listed, as which class; what is no source."""

import os
import tempfile
from pathlib import Path

import pytest
from drops import folders, listing, picture

from graftline.components.ingest import sources
from graftline.components.ingest.labels import CaseWatch
from graftline.components.ingest.survey import survey
from graftline.serving.errors import UserError


def labels(source: Path) -> dict[str, str | None]:
    return {entry.name: entry.label for entry in listing(source) if not entry.reason}


def reasons(source: Path) -> dict[str, str]:
    return {entry.name: entry.reason for entry in listing(source) if entry.reason}


def test_a_folder_per_class_gives_the_classes(tmp_path):
    picture(tmp_path / "rose" / "1.png", 1)
    picture(tmp_path / "daisy" / "field" / "2.png", 2)
    assert sources.detect(tmp_path).kind == sources.FOLDERS
    assert labels(tmp_path) == {"rose/1.png": "rose", "daisy/field/2.png": "daisy"}


def test_folders_named_after_splits_give_the_splits(tmp_path):
    for split in ("Training", "val", "test"):
        picture(tmp_path / split / "rose" / "1.png", 1)
    assert sources.detect(tmp_path).kind == sources.SPLIT_FOLDERS
    found = {entry.name: (entry.split, entry.label) for entry in listing(tmp_path)}
    assert found == {
        "Training/rose/1.png": ("train", "rose"),
        "val/rose/1.png": ("eval", "rose"),
        "test/rose/1.png": ("test", "rose"),
    }


def test_a_class_beside_a_folder_called_test_is_a_class(tmp_path):
    assert labels(folders(tmp_path, 1, classes=["test", "rose"])) == {
        "test/0.png": "test",
        "rose/0.png": "rose",
    }


@pytest.mark.parametrize("name", ["sun flower", "Löwenzahn", "日本", "a'b\"c", "a,b;c", "50%"])
def test_a_class_may_be_called_almost_anything(tmp_path, name):
    assert labels(folders(tmp_path, 1, classes=[name])) == {f"{name}/0.png": name}


def test_two_spellings_of_one_accent_are_one_class(tmp_path):
    folders(tmp_path, 1, classes=["caf\u00e9", "cafe\u0301"])
    assert set(labels(tmp_path).values()) == {"caf\u00e9"}


@pytest.mark.parametrize("name", ["\a", "a\nb", "\u200e", "\udcff"])
def test_a_name_that_cannot_be_read_is_no_class(tmp_path, name):
    picture(tmp_path / name / "1.png", 1)
    assert [entry.reason for entry in listing(tmp_path)] == ["unusable-label"]


def test_two_classes_that_differ_in_case_are_taken_for_a_slip(tmp_path):
    watch = CaseWatch(["rose"])
    watch.check("rose", "a file")
    with pytest.raises(UserError, match=r"differ only in case: 'rose' and 'Rose' \(of b file\)"):
        watch.check("Rose", "b file")


def test_litter_of_operating_systems_is_ignored(tmp_path):
    picture(tmp_path / "rose" / "1.png", 1)
    for name in (".DS_Store", "rose/Thumbs.db", "rose/._1.png", "rose/desktop.ini"):
        (tmp_path / name).write_bytes(b"litter")
    picture(tmp_path / "__MACOSX" / "rose" / "._1.png", 2)
    picture(tmp_path / "rose" / "@eaDir" / "1.png", 3)
    (tmp_path / "README.txt").write_text("about these images")
    assert labels(tmp_path) == {"rose/1.png": "rose"}
    assert set(reasons(tmp_path).values()) == {"ignored"}


def test_an_image_beside_the_class_folders_is_nobodys(tmp_path):
    folders(tmp_path, 1)
    picture(tmp_path / "lost.png", 9)
    assert reasons(tmp_path) == {"lost.png": "no-class"}


def test_a_hidden_image_is_not_taken_in_silently(tmp_path):
    picture(tmp_path / "rose" / ".1.png", 1)
    assert reasons(tmp_path) == {"rose/.1.png": "hidden-file"}


def test_links_are_followed_but_not_in_rings(tmp_path):
    picture(tmp_path / "elsewhere" / "1.png", 1)
    (tmp_path / "source" / "rose").mkdir(parents=True)
    (tmp_path / "source" / "rose" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "source" / "rose")
    (tmp_path / "source" / "rose" / "self.png").symlink_to("self.png")
    assert labels(tmp_path / "source") == {
        "rose/linked/1.png": "rose",
        "rose/self.png": "rose",
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "does not exist"), ("empty", "holds no folder"), ("notes.txt", "neither a man")],
)
def test_what_is_no_source_is_refused_with_what_would_be_one(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(UserError, match=said):
        sources.detect(tmp_path / name)


@pytest.mark.parametrize("closed", ["source", "source/rose"])
def test_a_folder_that_may_not_be_read_is_named(stranger, closed):
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o755)
        folders(Path(shared) / "source", 1)
        (Path(shared) / closed).chmod(0o700)
        stranger()
        with pytest.raises(UserError, match=rf"{closed}\b.* cannot be read: Permission denied"):
            listing(Path(shared) / "source")
        os.seteuid(0)


def test_a_survey_counts_classes_and_tells_the_usual_size(tmp_path):
    folders(tmp_path, 3)
    picture(tmp_path / "rose" / "big.jpg", 50)
    (tmp_path / "rose" / "broken.png").write_bytes(b"no image")
    found = survey(tmp_path)
    assert found.classes == {"daisy": 3, "rose": 5}
    assert found.formats == {"PNG": 6, "JPEG": 1}
    assert (found.median_width, found.median_height) == (24, 24)


def test_a_survey_refuses_what_makes_no_classifier(tmp_path):
    (tmp_path / "none" / "rose").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image that can be read"):
        survey(tmp_path / "none")
    with pytest.raises(UserError, match="one class only, 'rose'"):
        survey(folders(tmp_path / "one", 2, classes=["rose"]))
    with pytest.raises(UserError, match="differ only in case"):
        survey(folders(tmp_path / "two", 2, classes=["rose", "Rose"]))
