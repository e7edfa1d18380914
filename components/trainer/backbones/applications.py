"""The networks of `keras.applications`: how each is made, what it takes, where its blocks begin."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftline.components.trainer.backbones.scaling import CAFFE, IMAGENET, PLAIN, Scaling

if TYPE_CHECKING:
    import tf_keras

# From file name, address and hash (MD5 or SHA-256, or None) to a path on this machine.
Source = Callable[[str, str, str | None], str]

_MOBILENETS = ("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large")
_PIXELS = Scaling(mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0))
_EFFICIENT_BLOCK = r"(stem|block\d+[a-z]|top)_"
_RESNET_BLOCK = r"(conv1|conv\d_block\d+)_"
_V3_BLOCK = r"(Conv|expanded_conv(?:_\d+)?|Conv_1)(?:/|$)"


@dataclass(frozen=True)
class Application:
    """One network of `keras.applications`.

    Attributes:
        name: what the configuration calls it.
        keras_name: what Keras calls it.
        file: from width and image size to the name of the file with its ImageNet weights.
        scaling: what its input looks like.
        block: regular expression of its layers' names; group 1 is the block that one belongs to.
            None where no single tensor leads from one block to the next.
        parameters: their number without the classes, at alpha 1.
        size: the image size that it is made for.
        smallest: the least image size that it takes.
        alphas: the widths that its ImageNet weights come in.
        fixed: further arguments of its constructor.
    """

    name: str
    keras_name: str
    file: Callable[[float, int], str]
    scaling: Scaling
    block: str | None
    parameters: int
    size: int = 224
    smallest: int = 32
    alphas: tuple[float, ...] = (1.0,)
    fixed: dict[str, Any] = field(default_factory=dict)

    def make(self, size: int, alpha: float, source: Source | None = None) -> tf_keras.Model:
        """The network.

        Args:
            size: width and height of its input in pixels.
            alpha: width, of a MobileNet.
            source: finds the file of its ImageNet weights; None: it starts at random.

        Returns:
            A Keras model from images (B, size, size, 3) to feature maps (B, h, w, F).

        Raises:
            ValueError, OSError, KeyError: what Keras raises where the file does not fit.
        """
        import tf_keras

        constructor = getattr(tf_keras.applications, self.keras_name)
        width = {"alpha": alpha} if self.keras_name in _MOBILENETS else {}
        with _files_from(source) if source else contextlib.nullcontext():
            return constructor(
                input_shape=(size, size, 3),
                include_top=False,
                weights="imagenet" if source else None,
                **width,
                **self.fixed,
            )


@contextlib.contextmanager
def _files_from(source: Source) -> Iterator[None]:
    """Keras knows address and hash of each file; where it is kept on this machine is our matter."""

    from tf_keras.src.utils import data_utils

    def get_file(fname: str, origin: str, *, file_hash: str | None = None, **_: object) -> str:
        return source(fname, origin, file_hash)

    original, data_utils.get_file = data_utils.get_file, get_file
    try:
        yield
    finally:
        data_utils.get_file = original


def _always(name: str) -> Callable[[float, int], str]:
    return lambda alpha, size: name


_V1_WIDTHS = {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}


def _mobilenet_file(alpha: float, size: int) -> str:
    used = size if size in (128, 160, 192, 224) else 224
    return f"mobilenet_{_V1_WIDTHS.get(alpha)}_{used}_tf_no_top.h5"


def _mobilenet_v2_file(alpha: float, size: int) -> str:
    used = size if size in (96, 128, 160, 192, 224) else 224
    return f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{float(alpha)}_{used}_no_top.h5"


def _mobilenet_v3(kind: str, parameters: int) -> Application:
    return Application(
        f"mobilenet_v3_{kind}",
        f"MobileNetV3{kind.capitalize()}",
        lambda alpha, _: f"weights_mobilenet_v3_{kind}_224_{float(alpha)}_float_no_top_v2.h5",
        PLAIN,
        _V3_BLOCK,
        parameters,
        alphas=(0.75, 1.0),
        fixed={"include_preprocessing": False},
    )


def _resnet(layers: int, parameters: int) -> Application:
    file = f"resnet{layers}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return Application(
        f"resnet{layers}", f"ResNet{layers}", _always(file), CAFFE, _RESNET_BLOCK, parameters
    )


def _resnet_v2(layers: int, parameters: int) -> Application:
    file = f"resnet{layers}v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return Application(
        f"resnet{layers}_v2",
        f"ResNet{layers}V2",
        _always(file),
        PLAIN,
        r"(conv1|conv\d_block\d+|post)_",
        parameters,
    )


def _efficientnet(number: int, size: int, parameters: int) -> Application:
    # It scales by itself.
    return Application(
        f"efficientnet_b{number}",
        f"EfficientNetB{number}",
        _always(f"efficientnetb{number}_notop.h5"),
        _PIXELS,
        _EFFICIENT_BLOCK,
        parameters,
        size,
    )


def _efficientnet_v2(kind: str, size: int, parameters: int) -> Application:
    basic = kind.startswith("b")
    return Application(
        f"efficientnet_v2_{kind}",
        f"EfficientNetV2{kind.upper()}",
        _always(f"efficientnetv2-{kind}_notop.h5"),
        IMAGENET if basic else Scaling(mean=(128.0,) * 3, deviation=(128.0,) * 3),
        _EFFICIENT_BLOCK,
        parameters,
        size,
        fixed={"include_preprocessing": False},
    )


APPLICATIONS = (
    Application(
        "mobilenet",
        "MobileNet",
        _mobilenet_file,
        PLAIN,
        r"conv_?(?:pad_|dw_|pw_)?(\d+)(?:_|$)",
        3_228_864,
        alphas=(0.25, 0.5, 0.75, 1.0),
    ),
    Application(
        "mobilenet_v2",
        "MobileNetV2",
        _mobilenet_v2_file,
        PLAIN,
        r"(Conv1|expanded_conv|block_\d+|Conv_1)(?:_|$)",
        2_257_984,
        alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
    ),
    _mobilenet_v3("small", 939_120),
    _mobilenet_v3("large", 2_996_352),
    _resnet(50, 23_587_712),
    _resnet(101, 42_658_176),
    _resnet_v2(50, 23_564_800),
    _resnet_v2(101, 42_626_560),
    *(
        _efficientnet(number, size, parameters)
        for number, (size, parameters) in enumerate(
            [
                (224, 4_049_571),
                (240, 6_575_239),
                (260, 7_768_569),
                (300, 10_783_535),
                (380, 17_673_823),
                (456, 28_513_527),
                (528, 40_960_143),
                (600, 64_097_687),
            ]
        )
    ),
    _efficientnet_v2("b0", 224, 5_919_312),
    _efficientnet_v2("b1", 240, 6_931_124),
    _efficientnet_v2("b2", 260, 8_769_374),
    _efficientnet_v2("b3", 300, 12_930_622),
    _efficientnet_v2("s", 384, 20_331_360),
    _efficientnet_v2("m", 480, 53_150_388),
    _efficientnet_v2("l", 480, 117_746_848),
    # Every cell of NASNet reads the two before it.
    Application(
        "nasnet_mobile", "NASNetMobile", _always("nasnet_mobile_no_top.h5"), PLAIN, None, 4_269_716
    ),
    Application(
        "densenet121",
        "DenseNet121",
        _always("densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        IMAGENET,
        r"(conv1|conv\d_block\d+|pool\d)(?:_|/)",
        7_037_504,
    ),
    Application(
        "xception",
        "Xception",
        _always("xception_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        PLAIN,
        r"(block\d+)_",
        20_861_480,
        size=299,
        smallest=71,
    ),
    Application(
        "convnext_tiny",
        "ConvNeXtTiny",
        _always("convnext_tiny_notop.h5"),
        IMAGENET,
        r"convnext_tiny_(stem|downsampling_block_\d|stage_\d_block_\d+)(?:_|$)",
        27_820_128,
        fixed={"include_preprocessing": False},
    ),
)
