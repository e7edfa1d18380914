"""The step of a batch prediction that Beam's RunInference runs: one part, from files to its table.

The elements of RunInference are numbers of parts, not images: a runner keeps what passes between
its stages, and images would fill its memory. RunInference loads the version once per worker and
lets the worker's threads share it; a part may be repeated, and comes out the same.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tensorflow as tf
from apache_beam.ml.inference.base import ModelHandler

from graftline.components.batch_prediction.batch_size import BatchSize
from graftline.components.batch_prediction.listing import Read, read_part
from graftline.components.batch_prediction.output import Output, Part, Plan
from graftline.components.batch_prediction.tables import PROBABILITIES, Row, Table, part
from graftline.components.ingest.stages import Meter
from graftline.components.progress import report
from graftline.components.trainer.devices import take_gpus
from graftline.serving.errors import UserError
from graftline.serving.image_check import UnusableImage
from graftline.serving.predictor import Predictor

# Where the search for the best size begins and ends, by kind of device.
_CPU_BATCHES = (16, 64)
_GPU_BATCHES = (32, 1024)
_WARM_UP_SIZE = 64  # pixels
# Images that are read before it is their turn.
_MOST_AHEAD = 256
# A batch has at most as many pixels as so many of the largest images that are allowed.
_PIXELS = 4
_COLUMNS = ("id", "file", "label", "probability", PROBABILITIES, "version")
_BAD_COLUMNS = ("file", "reason", "detail")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every worker has to know.

    Attributes:
        folder: the output folder, which all workers see.
        plan: what was asked.
        batch_size: images per batch; None: what suits the device.
        devices: numbers of the GPUs to use; None: all, empty: the CPU.
    """

    folder: str
    plan: Plan
    batch_size: int | None
    devices: tuple[int, ...] | None


class Model:
    """A version in a worker, and what the worker has learnt of its device."""

    def __init__(self, predictor: Predictor, batches: BatchSize, meter: Meter) -> None:
        self.predictor = predictor
        # A first image sets up what the first batch need not wait for then.
        grey = tf.io.encode_jpeg(tf.fill((_WARM_UP_SIZE,) * 2 + (3,), tf.constant(128, tf.uint8)))
        self.classes, _ = predictor.classify([grey.numpy()])
        self.batches = batches
        self.meter = meter


class PartHandler(ModelHandler[int, int, Model]):
    """Predicts parts, each written to its file; see `apache_beam.ml.inference.base.ModelHandler`.

    Args:
        settings: a `Settings` as plain JSON, which any runner can carry.
    """

    def __init__(self, settings: bytes) -> None:
        super().__init__()
        self._encoded = settings

    def load_model(self) -> Model:
        """The version, and the batch size to begin with.

        Raises:
            UserError: the version does not fit the device.
        """
        settings = self._settings()
        gpus = take_gpus(settings.devices)
        bounds = _GPU_BATCHES if gpus else _CPU_BATCHES
        fixed = settings.batch_size
        batches = BatchSize(fixed, fixed) if fixed else BatchSize(*bounds)
        try:
            predictor = Predictor(Output(Path(settings.folder)).model, gpu=True)
            return Model(predictor, batches, Meter("predicting", settings.plan.images))
        except tf.errors.ResourceExhaustedError as error:
            raise _too_large("the version") from error

    def run_inference(
        self,
        batch: Sequence[int],
        model: Model,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[int]:
        """Predicts the parts of these numbers and returns the numbers.

        Raises:
            OSError: the disk is full, or the output folder cannot be written.
            UserError: not even one image fits the device.
        """
        for number in batch:
            _PartPrediction(self._settings(), model, number).run()
        return batch

    def batch_elements_kwargs(self) -> dict[str, int]:
        """One part at a time: it makes its own batches of images."""
        return {"min_batch_size": 1, "max_batch_size": 1}

    def get_metrics_namespace(self) -> str:
        """Of the metrics that RunInference counts."""
        return "graftline_batch_prediction"

    def _settings(self) -> Settings:
        return msgspec.json.decode(self._encoded, type=Settings)


class _PartPrediction:
    """One part on its way."""

    def __init__(self, settings: Settings, model: Model, number: int) -> None:
        self._settings = settings
        self._model = model
        self._number = number
        self._output = Output(Path(settings.folder))
        self._classes: Counter[str] = Counter()
        self._bad: list[Row] = []

    def run(self) -> None:
        """Writes the bad images, if any, then what became of the part, then the part itself."""
        plan, output = self._settings.plan, self._output
        images = read_part(
            output.listing,
            self._number,
            plan.kind,
            plan.feature,
            plan.limits,
            ahead=min(2 * self._model.batches.size, _MOST_AHEAD),
        )
        target = output.part_file("predictions", self._number, plan)
        with part(target, plan.format, _COLUMNS, self._model.classes) as table:
            for batch in self._batches(images):
                self._predict(batch, table)
            bad = output.part_file("bad", self._number, plan)
            if self._bad:
                with part(bad, plan.format, _BAD_COLUMNS) as aside:
                    aside.write(self._bad)
            output.note(
                self._number,
                Part(
                    classes=dict(self._classes),
                    bad=dict(Counter(row["reason"] for row in self._bad)),
                ),
            )

    def _batches(self, images: Iterator[Read]) -> Iterator[list[Read]]:
        """Batches of what can be read, whose pixels are bounded as well as their number."""
        most = _PIXELS * self._settings.plan.limits.max_pixels
        batch: list[Read] = []
        pixels = 0
        for image in images:
            if isinstance(image.content, UnusableImage):
                self._set_aside(image, image.content)
                continue
            if batch and (len(batch) >= self._model.batches.size or pixels + image.pixels > most):
                yield batch
                batch, pixels = [], 0
            batch.append(image)
            pixels += image.pixels
        if batch:
            yield batch

    def _predict(self, batch: list[Read], table: Table) -> None:
        """Predicts a batch; an image that cannot be decoded is found by halving.

        Raises:
            UserError: not even one image fits the device.
        """
        contents = [image.content for image in batch if isinstance(image.content, bytes)]
        began = time.monotonic()
        try:
            _, scores = self._model.predictor.classify(contents)
        except tf.errors.InvalidArgumentError as error:
            if len(batch) == 1:
                self._set_aside(
                    batch[0], UnusableImage("broken-pixels", str(error).splitlines()[0])
                )
                return
        except tf.errors.ResourceExhaustedError as error:
            if len(batch) == 1:
                raise _too_large(f"one image ({batch[0].name})") from error
            if self._model.batches.shrink(len(batch)):
                report(f"memory is used up: batches of {self._model.batches.size} from now on")
        else:
            self._model.batches.note(len(batch), time.monotonic() - began)
            self._model.meter.add(len(batch))
            table.write([self._row(*one) for one in zip(batch, scores, strict=True)])
            return
        middle = len(batch) // 2
        self._predict(batch[:middle], table)
        self._predict(batch[middle:], table)

    def _row(self, image: Read, scores: Any) -> Row:
        assert isinstance(image.content, bytes)
        names = self._model.classes
        best = int(scores.argmax())
        self._classes[names[best]] += 1
        values = scores.tolist()
        return {
            "id": hashlib.sha256(image.content).hexdigest(),
            "file": image.name,
            "label": names[best],
            "probability": values[best],
            PROBABILITIES: dict(zip(names, values, strict=True)),
            "version": self._settings.plan.version,
        }

    def _set_aside(self, image: Read, why: UnusableImage) -> None:
        self._bad.append({"file": image.name, "reason": why.reason, "detail": why.detail})


def _too_large(what: str) -> UserError:
    return UserError(
        f"The memory of the device does not hold {what}. Nothing is lost: free memory, or predict "
        "without the GPU (CUDA_VISIBLE_DEVICES=), then run the same command again."
    )
