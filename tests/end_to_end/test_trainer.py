"""The trainer inside TFX, with a real backbone on real photographs; what it serves elsewhere."""

import csv
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfx.components.example_gen.import_example_gen.component import ImportExampleGen
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.components.trainer.component import Trainer
from tfx.components.transform.component import Transform
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.metadata import sqlite_metadata_connection_config
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import example_gen_pb2, trainer_pb2, transform_pb2

from graftline.components.trainer.backbones import build
from graftline.components.trainer.backbones.registry import BACKBONES
from graftline.components.trainer.config import ImageConfig, TrainerConfig
from graftline.components.trainer.record import TrainingRecord
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.preprocessing import preprocessing_config
from graftline.schemas import curated

pytestmark = pytest.mark.end_to_end

# Loads an export in a process that knows nothing of Graftline and asks both signatures.
FRESH = """
import json, sys
import tensorflow as tf
model, records = sys.argv[1:]
signatures = tf.saved_model.load(model).signatures
examples = list(tf.data.TFRecordDataset(records, compression_type="GZIP").as_numpy_iterator())
answers = {"serving_default": [], "serving_examples": []}
for one in examples:
    image = tf.train.Example.FromString(one).features.feature["image"].bytes_list.value[0]
    by_image = signatures["serving_default"](image_bytes=tf.constant([image]))
    answers["serving_default"] += by_image["scores"].numpy().tolist()
together = signatures["serving_examples"](inputs=tf.constant(examples))
answers["serving_examples"] = together["scores"].numpy().tolist()
answers["classes"] = [name.decode() for name in together["classes"].numpy()[0]]
answers["modules"] = [name for name in sys.modules if name.startswith(("graftline", "tfx"))]
print(json.dumps(answers))
"""


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def in_every_form(photograph: bytes) -> list[bytes]:
    """A photograph as JPEG, PNG, grey, CMYK, 16-bit, large, and turned in every way."""
    image = Image.open(io.BytesIO(photograph))
    grey = np.asarray(image.convert("L"))
    forms = [
        photograph,
        encode(image, "PNG"),
        encode(image.convert("L"), "JPEG"),
        encode(image.convert("CMYK"), "JPEG"),
        encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        encode(image.convert("P"), "GIF"),
        encode(image.resize((1200, 900)), "JPEG"),
    ]
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        forms.append(encode(image, "JPEG", exif=exif))
    return forms


def example(image: bytes, label: str) -> bytes:
    made = tf.train.Example()
    made.features.feature["image"].bytes_list.value.append(image)
    made.features.feature["label"].bytes_list.value.append(label.encode())
    name = hashlib.sha256(image).hexdigest()
    made.features.feature["id"].bytes_list.value.append(name.encode())
    return made.SerializeToString()


class Trained(NamedTuple):
    model: Path
    record: TrainingRecord
    eval_records: str
    eval_labels: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Trained:
    """ImportExampleGen, ImportSchemaGen, Transform and Trainer on photographs of flowers."""
    folder = tmp_path_factory.mktemp("trained")
    source = shared_data / "flowers_ccby"
    with (source / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))[::20]
    classes = sorted({row["class"] for row in rows})
    photographs = [((source / row["file"]).read_bytes(), row["class"]) for row in rows]
    forms = [(form, name) for one, name in photographs[::25] for form in in_every_form(one)]
    for split, images in (("train", photographs), ("eval", forms)):
        (folder / "span" / split).mkdir(parents=True)
        path = str(folder / "span" / split / "images-00000-of-00001.tfrecord.gz")
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(path, options) as writer:
            for image, name in images:
                writer.write(example(image, name))
    schema = folder / "schema.pbtxt"
    curated.write(curated.build(classes), schema)
    config = {
        "batch_size": 16,
        "phases": [
            {"name": "frozen", "epochs": 25, "rate": 0.003},
            {"name": "fine_tune", "epochs": 1, "rate": 1e-5, "fraction": 0.2},
        ],
        "patience": 25,
    }
    image = {"size": 96}
    splits = [
        example_gen_pb2.Input.Split(name=name, pattern=f"{name}/*") for name in ("train", "eval")
    ]
    examples = ImportExampleGen(
        str(folder / "span"), input_config=example_gen_pb2.Input(splits=splits)
    )
    schema_gen = ImportSchemaGen(str(schema))
    transform = Transform(
        examples=examples.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        preprocessing_fn="graftline.pipeline.preprocessing.preprocessing_fn",
        custom_config=preprocessing_config(ImageConfig(**image), TrainerConfig(), classes),
        materialize=False,
        disable_statistics=True,
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=[]),
    )
    trainer = Trainer(
        examples=examples.outputs["examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema_gen.outputs["schema"],
        run_fn="graftline.components.trainer.run.run_fn",
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config={
            "trainer": config,
            "image": image,
            "classes": classes,
            "weights_cache": "/nowhere",
            "features": {"folder": str(folder / "features"), "code": ""},
            "start_from": "",
            "checkpoints": str(folder / "checkpoints"),
            "cluster": str(folder / "cluster"),
            "last_good": str(folder / "last_good"),
            "code": "",
            "weights_digest": "",
        },
    )
    LocalDagRunner().run(
        Pipeline(
            "trainer",
            str(folder / "root"),
            components=[examples, schema_gen, transform, trainer],
            metadata_connection_config=sqlite_metadata_connection_config(str(folder / "db")),
            beam_pipeline_args=[*beam_options(BeamConfig(), "drop")],
        )
    )
    [model] = (folder / "root" / "Trainer" / "model").glob("*/Format-Serving")
    [logs] = (folder / "root" / "Trainer" / "model_run").glob("*")
    record = TrainingRecord.read(str(logs))
    return Trained(model, record, path, [name for _, name in forms])


def test_training_serving_and_evaluation_agree_in_a_fresh_process(trained):
    asked = [sys.executable, "-c", FRESH, str(trained.model), trained.eval_records]
    answers = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
    by_image, by_example = (
        np.array(answers[name]) for name in ("serving_default", "serving_examples")
    )
    assert answers["modules"] == []
    assert len(by_image) == len(trained.eval_labels)
    np.testing.assert_allclose(by_image, by_example, atol=1e-5)
    # The trainer's own evaluation saw stored activations of the same images.
    columns = [answers["classes"].index(name) for name in trained.eval_labels]
    errors = np.sum((by_image - np.eye(by_image.shape[1])[columns]) ** 2, axis=1)
    assert errors.mean() == pytest.approx(trained.record.exported.eval_brier, abs=1e-5)
    right = np.mean(by_image.argmax(axis=1) == columns)
    assert right == pytest.approx(trained.record.exported.eval_accuracy)


def test_a_real_backbone_learns_real_photographs(trained):
    assert trained.record.phases[0].epochs[-1].accuracy > 0.9
    assert trained.record.exported.eval_accuracy > 0.5, "turned photographs are harder"


def test_the_first_loss_after_unfreezing_is_close_to_the_last_before(trained):
    frozen, fine_tune = trained.record.phases
    assert fine_tune.epochs[0].loss == pytest.approx(frozen.epochs[-1].loss, rel=0.2, abs=0.05)


@pytest.mark.parametrize("name", [name for name, b in BACKBONES.items() if b.block])
def test_every_backbone_has_the_parameters_listed_and_can_be_cut_between_its_blocks(name):
    backbone = BACKBONES[name]
    # LeNet's first dense layer grows with the image.
    size = backbone.size if name == "lenet5" else max(backbone.smallest, 32)
    whole = build.load(name, "none", 1.0, size, Path())
    assert whole.count_params() == backbone.parameters
    assert len(build.block_starts(whole, backbone)) >= 4
    lower, upper = build.split(whole, name, build.upper_blocks(whole, name, 0.5, 0))
    assert lower is not None
    image = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    np.testing.assert_allclose(
        upper(lower(image, training=False), training=False),
        whole(image, training=False),
        rtol=1e-4,
    )


TWO_REPLICAS = """
import sys
import numpy as np, tensorflow as tf
from pathlib import Path
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from graftline.components.trainer.autograph import leave_libraries_unconverted
leave_libraries_unconverted()
import tf_keras
from graftline.components.trainer.checkpoint import State
from graftline.components.trainer.config import PhaseConfig, TrainerConfig
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.feature_computer import infer
from graftline.components.trainer.feature_store import FeatureStore
from graftline.components.trainer.features import Features
from graftline.components.trainer.objective import to_train_on
from graftline.components.trainer.phases import run_phase
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
y, ids = np.zeros(50, np.int64), np.arange(50).astype(np.uint64)
config = TrainerConfig(batch_size=8, patience=5)
hardware, state = Hardware(strategy, 0, 1, "float32"), State()
with strategy.scope():
    backbone = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(4)])
    y[backbone(x).numpy()[:, 0] > 0] = 1
    network = tf_keras.Model(backbone.input, {"frozen": backbone.output})
    images = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    rows = np.concatenate([batch["frozen"] for batch in infer(network, images, hardware)])
    np.testing.assert_allclose(rows, backbone.predict(x, verbose=0), atol=1e-5)
    store = FeatureStore(None, (4,))
    store.append(ids, rows)
    features = Features([store], store.find(ids)[None], y)
    head = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
    run_phase(
        PhaseConfig(name="frozen", epochs=20, rate=0.1),
        config,
        head,
        to_train_on(features.batches(16, (0, 0)), 2, config, None),
        to_train_on(features.batches(16, None), 2, config, None),
        state, models=(head,), images=50, evaluation_images=50, hardware=hardware,
        logs=sys.argv[1], save=lambda: None,
    )
assert strategy.num_replicas_in_sync == 2
assert state.best.eval_accuracy > 0.9, state.best
"""


def test_two_mirrored_devices_compute_the_same_features_and_train(tmp_path):
    asked = [sys.executable, "-c", TWO_REPLICAS, str(tmp_path)]
    done = subprocess.run(asked, check=False, timeout=300, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
