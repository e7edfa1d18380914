"""Classifying images with a published version: the predictor and the command."""

import json
import resource
from pathlib import Path

import pytest

from graftline.pipeline.cli.main import main
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.manifest import Manifest
from graftline.serving.predictor import Predictor
from model_servers import colour_model
from model_servers import coloured_image as image


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "1"
    return colour_model(folder)


def test_classes_are_ranked_by_probability(saved_model):
    [blue, red] = Predictor(saved_model).predict(
        [image((0, 100, 255)), image((255, 0, 0), size=(30, 20))]
    )
    assert [name for name, _ in blue] == ["größtes Blau", "green", "red"]
    assert red[0][0] == "red"
    assert sum(probability for _, probability in blue) == pytest.approx(1)


def test_an_image_that_cannot_be_decoded_does_not_spoil_its_batch(saved_model):
    good = image((0, 255, 0))
    answers = Predictor(saved_model).predict([good, b"no image", good, b"", good[:40]])
    assert [answer and answer[0][0] for answer in answers] == ["green", None, "green", None, None]


def test_a_model_that_does_not_take_images_is_said(shared_data):
    model = shared_data / "tfserving" / "half_plus_two_2_versions" / "00000123"
    with pytest.raises(UserError, match=r"no signature serving_default that takes encoded images"):
        Predictor(model)


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage"])
def test_a_model_that_cannot_be_loaded_is_said(tmp_path, content):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "saved_model.pb").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be loaded.*graftline verify 3"):
        Predictor(tmp_path / "3")


@pytest.fixture
def graftline(tmp_path: Path, saved_model: Path, capfd: pytest.CaptureFixture[str]):
    """A project with version 1 in service and version 2 withdrawn."""
    (tmp_path / "graftline.yaml").write_text("model:\n  name: colours\n")
    base_path = BasePath(tmp_path / "serving" / "colours")
    for model_id in "ab":
        base_path.publish(saved_model, Manifest(model="colours", model_id=model_id))
    base_path.rollback()
    (tmp_path / "red [bold].png").write_bytes(image((255, 0, 0)))
    (tmp_path / "broken.jpg").write_bytes(b"no image")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["predict", *arguments, "--project", str(tmp_path)])
        return end.value.code, *capfd.readouterr()

    return call


def test_predict_prints_image_class_and_probability(graftline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, _ = graftline("red [bold].png")
    assert code == 0
    assert output.splitlines()[1].split() == ["red", "[bold].png", "red", "0.576"]
    assert output.splitlines()[-1] == "1 of 1 classified by version 1."


def test_files_that_are_no_images_are_named_one_by_one_and_the_others_answered(graftline, tmp_path):
    files = [str(tmp_path / name) for name in ("broken.jpg", "red [bold].png", "missing.png", "")]
    code, output, errors = graftline(*files)
    assert code == 2
    assert output.splitlines()[-1] == "1 of 4 classified by version 1."
    assert [line.split(": ", 1)[1] for line in errors.splitlines()] == [
        "not-an-image: no image format begins with 'no image'.",
        "cannot be read: No such file or directory.",
        "cannot be read: Is a directory.",
    ]


def test_predict_as_json_with_the_likeliest_classes(graftline, tmp_path):
    good, broken = str(tmp_path / "red [bold].png"), str(tmp_path / "broken.jpg")
    code, output, _ = graftline(good, broken, "--top", "2", "--json")
    document = json.loads(output)
    assert (code, document["version"]) == (2, 1)
    assert document["images"][0]["classes"][0] == ["red", pytest.approx(0.576, abs=1e-3)]
    assert len(document["images"][0]["classes"]) == 2
    assert document["images"][1] == {
        "file": broken,
        "error": "not-an-image: no image format begins with 'no image'.",
    }


def test_a_torn_image_with_a_sound_header_is_named(graftline, tmp_path):
    (tmp_path / "torn.png").write_bytes(image((255, 0, 0), size=(50, 50))[:60])
    code, _, errors = graftline(str(tmp_path / "torn.png"))
    assert (code, "is no image that the model can decode" in errors) == (2, True)


def test_hostile_files_are_refused_before_they_are_decoded(graftline, shared_data):
    bombs = [path for path in (shared_data / "bad_images" / "bombs").iterdir() if path.is_file()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, output, _ = graftline(*map(str, bombs), "/dev/zero", "--json", "drop.max_bytes=1000000")
    assert code == 2
    assert all(entry["error"] for entry in json.loads(output)["images"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_every_odd_file_is_read_or_named(graftline, shared_data):
    odd = [path for path in (shared_data / "bad_images").rglob("*") if path.is_file()]
    _, output, _ = graftline(*map(str, odd), "--json")
    answers = json.loads(output)["images"]
    assert len(answers) == len(odd)
    assert all(("error" in answer) != ("classes" in answer) for answer in answers)


def test_more_images_than_one_batch_are_answered_in_order(graftline, tmp_path):
    colours = {"red": (255, 0, 0), "green": (0, 255, 0)}
    expected = ["red" if number % 3 else "green" for number in range(70)]
    for number, name in enumerate(expected):
        (tmp_path / f"{number}.png").write_bytes(image(colours[name]))
    _, output, _ = graftline(*(str(tmp_path / f"{number}.png") for number in range(70)), "--json")
    assert [entry["classes"][0][0] for entry in json.loads(output)["images"]] == expected


def test_a_withdrawn_version_cannot_be_asked(graftline, tmp_path):
    code, _, errors = graftline(str(tmp_path / "broken.jpg"), "--version", "2")
    assert (code, "no version 2" in errors) == (2, True)
