"""`graftline backbones`: what it lists, and fetching weights."""

import json
from typing import Any

import pytest

from graftline.components.trainer.backbones import build, registry
from graftline.pipeline.cli.main import main

V2_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"


def listed(capsys, *arguments: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["backbones", *arguments, "--json"])
    out = capsys.readouterr().out
    return json.loads(out) if ended.value.code == 0 else ended.value.code


def test_the_list_shows_what_is_here_for_the_projects_images_and_fetch_checks_it(
    tmp_path, capsys, monkeypatch
):
    (tmp_path / "graftline.yaml").write_text(
        "model: {name: small}\nimage: {size: 96}\npaths: {weights: cache}\n"
    )
    monkeypatch.chdir(tmp_path)
    before = {one["name"]: one for one in listed(capsys)}
    assert before.keys() == registry.BACKBONES.keys()
    assert before["efficientnet_lite0"]["here"] == ["bundled"]
    assert before["mobilenet_v2"]["here"] == []
    assert (before["resnet50"]["image_size"], before["lenet5"]["weights"]) == (224, ["none"])

    made = build.load("mobilenet_v2", "none", 0.35, 96, tmp_path)
    (tmp_path / "cache").mkdir()
    made.save_weights(str(tmp_path / "cache" / V2_FILE))
    fetched = listed(capsys, "fetch", "mobilenet_v2", "--alpha", "0.35")

    assert fetched["file"] == str(tmp_path / "cache" / V2_FILE)
    after = {one["name"]: one for one in listed(capsys)}
    assert after["mobilenet_v2"]["here"] == ["imagenet 0.35"]
    # Of images of another size the weights are in another file.
    (tmp_path / "graftline.yaml").write_text("image: {size: 128}\npaths: {weights: cache}\n")
    assert not {one["name"]: one for one in listed(capsys)}["mobilenet_v2"]["here"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mobilenet_v9"], "mobilenet_v2"),
        (["lenet5"], "has no weights to download"),
        (["mobilenet_v2", "--alpha", "0.3"], "choose 0.35"),
    ],
)
def test_what_cannot_be_fetched_is_refused_with_what_can(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["backbones", "fetch", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
