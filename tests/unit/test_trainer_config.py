"""The sections `image` and `trainer`: defaults that train, combinations that cannot."""

import subprocess
import sys

import msgspec
import pytest

from graftline.components.trainer.config import ImageConfig, TrainerConfig

PHASE = {"name": "only", "epochs": 3, "rate": 1e-3}
NASNET = {"backbone": "nasnet_mobile", "weights": "imagenet", "phases": [PHASE]}


def test_the_defaults_need_no_download():
    config = TrainerConfig()
    assert (config.backbone, config.weights) == ("efficientnet_lite0", "bundled")
    assert [(phase.name, phase.fraction > 0) for phase in config.phases] == [
        ("frozen", False),
        ("fine_tune", True),
    ]


def test_a_configuration_survives_json():
    config = TrainerConfig(backbone="mobilenet_v2", weights="w.h5", alpha=0.35, seed=7)
    assert msgspec.json.decode(msgspec.json.encode(config), type=TrainerConfig) == config


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backbone": "mobilnet"}, "Did you mean mobilenet or mobilenet_v2"),
        ({"backbone": "resnet50"}, "weights bundled do not exist for resnet50"),
        ({"weights": "imagenet"}, "it offers bundled, none"),
        ({"weights": "ImageNet"}, "neither one of bundled, imagenet, hub, none nor a path"),
        ({"alpha": 0.5}, "alpha has no meaning for efficientnet_lite0"),
        (
            {"backbone": "mobilenet_v2", "weights": "imagenet", "alpha": 0.4},
            "alpha 0.4; choose 0.35",
        ),
        ({"backbone": "https://tfhub.dev/x/y"}, "names no version"),
        ({"phases": []}, "length >= 1"),
        ({"phases": [PHASE, PHASE]}, "two phases have the same name"),
        ({"phases": [{**PHASE, "epochs": 0}]}, "epochs"),
        ({"phases": [{**PHASE, "rate": 0.0}]}, "rate"),
        ({"phases": [{**PHASE, "fraction": 1.1}]}, "fraction"),
        ({"phases": [{**PHASE, "fraction": 0.5, "blocks": 2}]}, "give one of them"),
        ({"phases": [{**PHASE, "warmup": 3}]}, "warm-up of 3 epochs leaves nothing"),
        ({"weights": "none"}, "starts at random"),
        ({"weights": "none", "phases": [{**PHASE, "fraction": 0.5}]}, "starts at random"),
        ({**NASNET, "phases": [{**PHASE, "blocks": 2}]}, "cannot be cut"),
        ({"head": {"dropout": 1.0}}, "dropout"),
        ({"batch_size": 0}, "batch_size"),
        ({"strategy": "parameter_server"}, "strategy"),
        ({"workers": 2, "strategy": "mirrored"}, "leave it at auto"),
        ({"devices": [0, 1, 0]}, "devices names a GPU twice"),
        ({"backbone": "https://tfhub.dev/x/y/1", "weights": "a.h5"}, "set weights to hub"),
        ({"optimizer": "adam"}, "optimizer"),
    ],
)
def test_what_cannot_train_is_refused(settings, says):
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert(settings, TrainerConfig)


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "mobilenet_v2", "weights": "imagenet", "alpha": 0.35},
        {"backbone": "resnet50", "weights": "/elsewhere/resnet.h5"},
        {"backbone": "https://tfhub.dev/x/feature_vector/2", "weights": "hub", "phases": [PHASE]},
        {"weights": "none", "phases": [{**PHASE, "fraction": 1.0}]},
        {"phases": [PHASE]},
        NASNET,
    ],
)
def test_what_can_train_is_accepted(settings):
    msgspec.convert(settings, TrainerConfig)


@pytest.mark.parametrize("settings", [{"size": 16}, {"size": 4096}, {"fit": "squeeze"}])
def test_an_impossible_image_is_refused(settings):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(settings, ImageConfig)


def test_reading_a_configuration_loads_no_tensorflow():
    script = (
        "import sys, graftline.components.trainer.config\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'tf_keras', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
