"""Manifests as a source: the forms that are read, and what is said of those that are malformed."""

from pathlib import Path

import pytest
from drops import folders, listing, manifest

from graftline.components.ingest import sources
from graftline.serving.errors import UserError


def labels(source: Path) -> dict[str, str | None]:
    return {entry.name: entry.label for entry in listing(source) if not entry.reason}


def reasons(source: Path) -> dict[str, str]:
    return {entry.name: entry.reason for entry in listing(source) if entry.reason}


def table(folder: Path, text: str | bytes, name: str = "manifest.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


TABLES = {
    "comma.csv": b"file,label,split\na/1.png,rose,train\n2.png,daisy,\n",
    "semicolon.csv": b"\xef\xbb\xbfPath;Class;Subset\r\na/1.png;rose;training\r\n2.png;daisy;\r\n",
    "tabs.tsv": b"label\tfilename\tset\nrose\ta/1.png\ttrain\ndaisy\t2.png\t\n",
    "quoted.csv": b'file,label,split\n"a/1.png","rose","train"\n"2.png",daisy,\n',
    "lines.jsonl": b'{"file": "a/1.png", "label": "rose", "split": "train"}\n\n'
    b'{"file": "2.png", "label": "daisy"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_any_usual_form_names_files_classes_and_splits(tmp_path, name):
    path = table(tmp_path, TABLES[name], name)
    assert [(e.path, e.label, e.split) for e in listing(path)] == [
        (tmp_path / "2.png", "daisy", None),
        (tmp_path / "a" / "1.png", "rose", "train"),
    ]


def test_a_manifest_in_a_folder_speaks_for_it(tmp_path):
    folders(tmp_path, 1)
    table(tmp_path, "file,label\nrose/0.png,pink rose\n", "labels.csv")
    table(tmp_path, "file,price\nrose/0.png,3\n", "metadata.csv")
    assert labels(tmp_path) == {"rose/0.png": "pink rose"}


def test_of_several_manifests_a_person_has_to_choose(tmp_path):
    for name in ("labels.csv", "manifest.jsonl"):
        table(tmp_path, TABLES["comma.csv" if "csv" in name else "lines.jsonl"], name)
    with pytest.raises(UserError, match=r"several manifests: labels\.csv, manifest\.jsonl"):
        sources.detect(tmp_path)


@pytest.mark.parametrize("label", ["a/b", " spaced  ", "7", "Köln/Süd"])
def test_a_manifest_may_have_any_class_name(tmp_path, label):
    path = manifest(tmp_path / "m.jsonl", [{"file": "1.png", "label": label}])
    assert labels(path) == {"1.png": label.strip()}


def test_numbers_as_classes_become_their_text(tmp_path):
    path = manifest(tmp_path / "m.jsonl", [{"file": "1.png", "label": 7}])
    assert labels(path) == {"1.png": "7"}


def test_a_row_without_a_class_name_costs_that_row_only(tmp_path):
    path = table(tmp_path, "file,label\n1.png,rose\n2.png,\n3.png\n4.png,a\x07\n")
    assert labels(path) == {"1.png": "rose"}
    assert set(reasons(path)) == {"2.png", "3.png", "4.png"}
    assert set(reasons(path).values()) == {"unusable-label"}


@pytest.mark.parametrize("label", [["rose", "daisy"], {"name": "rose"}, True])
def test_a_class_that_is_no_text_and_no_number_is_none(tmp_path, label):
    path = manifest(tmp_path / "m.jsonl", [{"file": "1.png", "label": label}])
    assert reasons(path) == {"1.png": "unusable-label"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.csv", "file,label,split\n1.png,rose,holdout\n", "'holdout' in line 2 of .*m.csv is no"),
        ("m.csv", "name,label\n1.png,rose\n", "no file in line 2 .*found name, label"),
        ("m.csv", "file,colour\n1.png,red\n", "no class in line 2 .*found file, colour"),
        ("m.csv", "file,label\n,rose\n", "no file in line 2"),
        ("m.csv", b"file,label\n\xff.png,rose\n", "not text in UTF-8"),
        ("m.csv", b'file,label\n"' + b"x" * 200_000, "is not a table"),
        ("m.jsonl", '{"file": "1.png", "label": "rose"}\n{"file"\n', "Line 2 of .* is not JSON"),
        ("m.jsonl", "[1]\n", "Line 1 of .* is not a JSON object"),
        ("m.jsonl", b'{"file": "\xff"}\n', "Line 1 of .* is not JSON"),
        ("m.jsonl", '{"file": "\\ud800.png", "label": "rose"}\n', "line 1 .*no name of a file"),
    ],
)
def test_a_malformed_manifest_is_told_with_the_line(tmp_path, name, content, said):
    path = table(tmp_path, content, name)
    with pytest.raises(UserError, match=said):
        listing(path)
