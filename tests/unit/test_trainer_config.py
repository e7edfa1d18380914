"""The sections `image` and `trainer`: defaults that train, combinations that cannot."""

import subprocess
import sys

import msgspec
import pytest

from graftline.components.trainer.config import ImageConfig, TrainerConfig


def test_the_defaults_need_no_download():
    config = TrainerConfig()
    assert (config.backbone, config.weights) == ("efficientnet_lite0", "bundled")
    assert config.frozen.epochs > 0
    assert config.fine_tune.epochs > 0


def test_a_configuration_survives_json():
    config = TrainerConfig(backbone="mobilenet_v2", weights="w.h5", alpha=0.35, seed=7)
    assert msgspec.json.decode(msgspec.json.encode(config), type=TrainerConfig) == config


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backbone": "mobilnet"}, "Did you mean mobilenet_v2"),
        ({"backbone": "resnet50"}, "weights bundled do not exist for resnet50"),
        ({"weights": "imagenet"}, "it offers bundled, none"),
        ({"weights": "ImageNet"}, "neither one of bundled, imagenet, none nor a path"),
        ({"alpha": 0.5}, "alpha has no meaning for efficientnet_lite0"),
        ({"frozen": {"epochs": 0}, "fine_tune": {"epochs": 0}}, "nothing would train"),
        ({"weights": "none"}, "set frozen.epochs to 0 and fine_tune.fraction to 1.0"),
        ({"weights": "none", "fine_tune": {"epochs": 0}}, "starts at random"),
        ({"weights": "none", "frozen": {"epochs": 0}}, "starts at random"),
        ({"fine_tune": {"fraction": 0.0}}, "fraction"),
        ({"fine_tune": {"fraction": 1.1}}, "fraction"),
        ({"frozen": {"rate": 0.0}}, "rate"),
        ({"head": {"dropout": 1.0}}, "dropout"),
        ({"batch_size": 0}, "batch_size"),
        ({"strategy": "tpu"}, "strategy"),
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
        {"weights": "none", "frozen": {"epochs": 0}, "fine_tune": {"fraction": 1.0}},
        {"fine_tune": {"epochs": 0}},
    ],
)
def test_what_can_train_is_accepted(settings):
    read = msgspec.to_builtins(msgspec.convert(settings, TrainerConfig))
    for name, value in settings.items():
        assert read[name] == ({**read[name], **value} if isinstance(value, dict) else value)


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
