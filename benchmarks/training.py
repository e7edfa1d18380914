"""The trainer beside what the machine could do: rates, memory, several workers.

    python benchmarks/training.py IMAGES WEIGHTS [--parts rates precision memory workers killed]
                                  [--seeds 1 2 3] [--sizes 1000 4000 16000]
                                  [--backbones resnet50 efficientnet_v2_b0] [--batch 32]

IMAGES   folder with one sub-folder per class
WEIGHTS  MobileNetV2 0.35 no-top weights (h5)

rates    images per second of the input pipeline, beside plain JPEG decoding of the same images in
         as many threads as tf.data likes; of the frozen phase's features, from TFRecords to disk,
         beside the bare backbone on a batch that lies in memory, and beside Beam, which could
         compute them as well. By turns, the median of several; and the milliseconds of a processor
         for each image, which hardly depend on what else the machine does. Of activations that are
         made, beside activations that are read from the disk.
precision
         images per second of the frozen phase's features and of fine-tuning half of the blocks, per
         backbone, in float32 and in what `trainer.precision: auto` takes on a GPU; and the share of
         that time for which the device waits for images, from the same work on a batch that it
         holds. Without a GPU the processor is measured, beside bfloat16, and the output says so.
memory   peak of `graftline run` on so many images, copies of IMAGES with other bytes.
workers  accuracy and seconds of the Trainer with one worker, with two, and with two that take
         half the batch each at the rate of one, for every seed.
killed   accuracy for every seed; and, for the first ones of them, of a run that is killed in each
         phase and resumed.

The whole pipeline beside the script that a user would have written is `benchmarks/main_job.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drop
from accuracy import graftline
from main_job import measured
from repeated_training import BATCH, GRAFTLINE, begin, killed, workers

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras

    from graftline.components.trainer.devices import Hardware
    from graftline.components.trainer.inputs import Images

_ROUNDS = 3
# Batches that are timed of each network, after some that warm up.
_TIMED_ON_GPU, _TIMED_ON_PROCESSOR = 100, 3
# What a Beam function finds in its process: it cannot carry a network.
_held: dict[str, Any] = {}


def rates(folder: Path, images: Path, weights: Path) -> None:
    """Prints images per second of reading and of the frozen phase, beside their bare parts."""
    project = trained(folder, images, weights)
    in_a_process("print_rates", str(project), str(images), str(weights))


def precision(folder: Path, images: Path, weights: Path, backbones: list[str], batch: int) -> None:
    """Prints images per second of both phases in float32 and in 16 bits, per backbone."""
    project = trained(folder, images, weights)
    for name in backbones:
        for kept in ("float32", "16 bits"):
            in_a_process("print_precision", str(project), name, kept, str(batch))


def trained(folder: Path, images: Path, weights: Path) -> Path:
    """A project that has taken the images in and trained once, as shortly as can be."""
    project, overrides = begin(folder, images, weights)
    quick = ["trainer.phases=[{name: frozen, epochs: 1, rate: 1e-3}]", "trainer.feature_store_gb=0"]
    anything = ["model_gate.min_accuracy=0.0", "model_gate.min_class_recall=0.0"]
    graftline(project, "run", *overrides, *quick, *anything)
    return project


def in_a_process(function: str, *arguments: str) -> None:
    """Calls a function of this module in a process of its own, which has TensorFlow."""
    code = f"import training; training.{function}(*__import__('sys').argv[1:])"
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parent,
        check=True,
        stderr=subprocess.DEVNULL,
    )


def training_images(project: str) -> Images:
    """Those that a project's only run has trained on."""
    import tensorflow_transform as tft

    from graftline.components.trainer.inputs import Images

    artifacts = Path(project) / "tfx"
    [graph] = artifacts.glob("Transform/transform_graph/*")
    pattern = str(artifacts / "ImportExampleGen" / "examples" / "*" / "Split-train" / "*")
    return Images.find([pattern], tft.TFTransformOutput(str(graph)))


def print_precision(project: str, name: str, kept: str, batch_size: str) -> None:
    """Prints images per second of both phases of one network, and how long the device waits.

    Args:
        project: a project whose only run has trained, on images of 224 pixels.
        name: the backbone; its weights are random, which makes it no faster.
        kept: `float32`, or `16 bits`: float16 on a GPU, bfloat16 on a processor.
        batch_size: images per batch.
    """
    import tensorflow as tf
    import tf_keras

    from graftline.components.trainer.backbones import build, registry
    from graftline.components.trainer.config import PhaseConfig, TrainerConfig
    from graftline.components.trainer.devices import Hardware
    from graftline.components.trainer.feature_computer import infer
    from graftline.components.trainer.network import join, make_head, pooled
    from graftline.components.trainer.objective import make_loss, make_optimizer, to_train_on

    is_gpu = bool(tf.config.list_physical_devices("GPU"))
    number = "float32" if kept == "float32" else "float16" if is_gpu else "bfloat16"
    phase = PhaseConfig(name="fine_tune", epochs=2, rate=1e-5, fraction=0.5)
    size = int(batch_size)
    config = TrainerConfig(
        backbone=name,
        weights=registry.find(name).weights[0],
        phases=(phase,),
        batch_size=size,
        precision=number,
        devices=(0,) if is_gpu else None,
    )
    hardware = Hardware.find(config)
    images = training_images(project)
    classes = int(images.labels.max()) + 1
    steps = _TIMED_ON_GPU if is_gpu else _TIMED_ON_PROCESSOR
    whole = [batch for batch in images.batches(size).take(2) if len(batch[1]) == size]
    held = tf.data.Dataset.from_tensors(whole[0]).repeat()
    # The first batches fill the pipeline's buffers, which would pass for its speed.
    read = images.shuffled_batches(size, 0)
    read = read.filter(lambda _, labels: tf.shape(labels)[0] == size)
    with hardware.scope():
        backbone = pooled(build.load(name, "none", 1.0, 224, Path()), "mean")
        head = make_head(config.head, backbone.output_shape[-1], classes)
        network = tf_keras.Model(backbone.input, {"features": backbone.output})
        blocks = build.upper_blocks(backbone, name, phase.fraction, 0)
        lower, _ = build.split(backbone, name, blocks)
        model = join(backbone, head, pretrained=True)
    features = {
        source: _frozen(infer(network, batches.take(2 * steps + 2), hardware), steps) * size
        for source, batches in (("read", read), ("held", held))
    }
    with hardware.scope():
        if lower is not None:
            lower.trainable = False
        model.compile(make_optimizer(phase, config, steps), make_loss(0.1))
        tuned = {
            source: _fitted(model, to_train_on(batches, classes, config, None), steps) * size
            for source, batches in (("read", read), ("held", held))
        }
    device = tf.config.list_logical_devices("GPU" if is_gpu else "CPU")[0].name
    print(
        f"{name} in {number} on {device}, batches of {size}" + ("" if is_gpu else "; NO GPU HERE")
    )
    for said, found in (("features", features), ("fine-tuning", tuned)):
        waits = max(0.0, 1 - found["read"] / found["held"])
        print(
            f"  {said:<12}{found['read']:8.0f} images/s, {found['held']:8.0f} on one batch that it "
            f"holds: waits for images {waits:.0%} of the time",
            flush=True,
        )


def print_rates(project: str, images: str, weights: str) -> None:
    """The same, in a process of its own that has TensorFlow.

    Args:
        project: a project whose last run has trained.
        images: the images that it was trained on.
        weights: of the network.
    """
    import apache_beam as beam
    import numpy as np
    import tensorflow as tf
    import tf_keras
    from apache_beam.options.pipeline_options import PipelineOptions

    from graftline.components.trainer.backbones import build, registry
    from graftline.components.trainer.config import AugmentationConfig, TrainerConfig
    from graftline.components.trainer.devices import Hardware
    from graftline.components.trainer.feature_computer import FeatureComputer, infer
    from graftline.components.trainer.features import FeatureFolder
    from graftline.components.trainer.inputs import FEATURES, IMAGE, LABEL
    from graftline.components.trainer.network import pooled
    from graftline.pipeline.beam.config import BeamConfig
    from graftline.pipeline.beam.options import beam_options

    train = training_images(project)
    config = TrainerConfig(backbone="mobilenet_v2", alpha=0.35, weights=weights)
    hardware = Hardware.find(config)
    with hardware.scope():
        whole = build.load("mobilenet_v2", weights, 0.35, 224, Path(), print)
        backbone = pooled(build.without_top(whole, "mobilenet_v2", 0), "mean")
    files = [str(path) for path in Path(images).rglob("*") if path.is_file()][: len(train)]
    batch = np.random.default_rng(0).uniform(-1, 1, (BATCH, 224, 224, 3)).astype(np.float32)
    label = np.zeros(BATCH, np.int64)

    def read() -> int:
        return sum(len(labels) for _, labels in train.batches(BATCH))

    def decode() -> int:
        def one(path: tf.Tensor) -> tf.Tensor:
            return tf.shape(tf.io.decode_image(tf.io.read_file(path)))[0]

        decoded = tf.data.Dataset.from_tensor_slices(files).map(one, tf.data.AUTOTUNE)
        return sum(1 for _ in decoded)

    def compute() -> int:
        store = FeatureFolder(root=None, scratch=None, most_bytes=0, code="")
        computer = FeatureComputer(
            store,
            hardware,
            BATCH,
            AugmentationConfig(),
            registry.find("mobilenet_v2").scaling,
        )
        _, computed = computer.compute(
            backbone.input, {"features": backbone.output}, {}, {}, train, varied=False
        )
        store.close()
        return computed.images

    def bare() -> int:
        batches = tf.data.Dataset.from_tensors((batch, label)).repeat(len(train) // BATCH)
        network = tf_keras.Model(backbone.input, {"features": backbone.output})
        return sum(len(one["features"]) for one in infer(network, batches, hardware))

    layer = train.transform.transform_features_layer()

    @tf.function
    def features_of(examples: tf.Tensor) -> tf.Tensor:
        parsed = tf.io.parse_example(examples, FEATURES)
        images = layer({name: parsed[name] for name in (IMAGE, LABEL)})[IMAGE]
        return backbone(images, training=False)

    # A list of Python's own bytes would be traced anew for every batch.
    _held["features_of"] = lambda batch: features_of(tf.constant(batch))

    def in_beam() -> int:
        _held["count"] = 0
        options = PipelineOptions(list(beam_options(BeamConfig(), "drop")))
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | beam.Create(train.files)
                | beam.io.ReadAllFromTFRecord()
                | beam.BatchElements(BATCH, BATCH)
                | beam.Map(_in_beam)
            )
        return _held["count"]

    print_boundaries(train, hardware)
    for ours, other, said in (
        (read, decode, "input pipeline beside plain decoding"),
        (compute, bare, "frozen phase beside the bare backbone"),
        (compute, in_beam, "frozen phase beside the same in Beam"),
    ):
        (first, least), (second, other_least) = _by_turns(ours, other)
        print(f"{said:<40}{first:8.0f} {second:8.0f} images/s{first / second:8.2f}", flush=True)
        print(
            f"{'  milliseconds of a processor per image':<40}{least:8.2f} {other_least:8.2f}"
            f"{other_least / least:17.2f}",
            flush=True,
        )


def print_boundaries(train: Images, hardware: Hardware) -> None:
    """Prints how fast the lower half of some networks makes activations, and how fast a disk reads.

    Args:
        train: images of 224 pixels.
        hardware: where the networks run.
    """
    from graftline.components.trainer import boundary
    from graftline.components.trainer.backbones import build

    for name in ("mobilenet_v2", "efficientnet_lite0", "resnet50"):
        with hardware.scope():
            backbone = build.load(name, "none", 1.0, 224, Path(), print)
            blocks = build.upper_blocks(backbone, name, 0.5, 0)
            lower, _ = build.split(backbone, name, blocks)
        made, read = boundary.rates(lower, train, BATCH, hardware, None)
        said = f"below half of {name}: made, read"
        print(f"{said:<40}{made:8.0f} {read:8.0f} images/s{made / read:8.2f}", flush=True)


def _in_beam(batch: list[bytes]) -> None:
    """What a Beam stage would do, in the process of the in-memory runner."""
    _held["count"] += len(_held["features_of"](batch).numpy())


def _frozen(results: Iterator[object], steps: int) -> float:
    """Batches per second of what comes out, once it flows."""
    for _ in range(steps + 2):
        next(results)
    started = time.monotonic()
    for _ in range(steps):
        next(results)
    return steps / (time.monotonic() - started)


def _fitted(model: tf_keras.Model, batches: tf.data.Dataset, steps: int) -> float:
    """Batches per second of training, once it flows."""
    model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
    started = time.monotonic()
    model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
    return steps / (time.monotonic() - started)


def _by_turns(*contenders: Callable[[], int]) -> list[tuple[float, float]]:
    """Medians, of each, of the images per second and of the processor's milliseconds per image.

    The latter hardly depends on what else the machine does.
    """
    found: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for number in range(_ROUNDS + 1):
        for contender, of_contender in zip(contenders, found, strict=True):
            started, busy = time.monotonic(), time.process_time()
            count = contender()
            took = time.monotonic() - started, time.process_time() - busy
            if number:  # the first round warms up
                of_contender.append((count / took[0], 1000 * took[1] / count))
    medians = [map(statistics.median, zip(*figures, strict=True)) for figures in found]
    return [(rate, processor) for rate, processor in medians]


def memory(folder: Path, images: Path, weights: Path, sizes: list[int]) -> None:
    """Prints the peak of a run for so many images."""
    originals = sorted(path for path in images.rglob("*") if path.is_file())
    for size in sizes:
        inside = folder / str(size)
        drop.make(originals, size, inside / "images")
        project, overrides = begin(inside, inside / "images", weights)
        command = [*GRAFTLINE, "run", "--project"]
        seconds, peak, _ = measured(
            [
                *(*command, str(project), *overrides),
                "trainer.phases.frozen.epochs=3",
                "trainer.phases.fine_tune.epochs=1",
                # Copies of the same images under labels by turns teach nothing.
                "model_gate.min_accuracy=0.0",
                "model_gate.min_class_recall=0.0",
            ],
            folder / "log.txt",
        )
        print(f"{size:>8} images  {seconds:8.0f} s  {peak:8.0f} MB at the peak", flush=True)


def main() -> None:
    """Measures the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--parts", nargs="+", default=["rates", "precision", "memory", "workers"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "efficientnet_v2_b0"])
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    images, weights = options.images.resolve(), options.weights.resolve()
    print(json.dumps({"images": str(images), "parts": options.parts}), flush=True)
    for part in options.parts:
        with tempfile.TemporaryDirectory(prefix="graftline-training-") as name:
            if part == "rates":
                rates(Path(name), images, weights)
            elif part == "precision":
                precision(Path(name), images, weights, options.backbones, options.batch)
            elif part == "memory":
                memory(Path(name), images, weights, options.sizes)
            elif part == "workers":
                workers(Path(name), images, weights, options.seeds)
            elif part == "killed":
                killed(Path(name), images, weights, options.seeds)
            else:
                parser.error(f"there is no part {part!r}")


if __name__ == "__main__":
    main()
