"""Makes a servable of a version's folder: which kind of model, batched or not, warmed up."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from graftline.serving.server.batch_scheduler import Parameters, Scheduler
from graftline.serving.server.batching import BatchingServable, read_parameters
from graftline.serving.server.flags import Flags
from graftline.serving.server.metrics import Metrics
from graftline.serving.server.servable import SavedModel, Servable, session_config
from graftline.serving.server.sources import TFLITE_MODEL
from graftline.serving.server.status import Code, explain
from graftline.serving.server.text_protos import BatchingParameters, read_text
from graftline.serving.server.warmup import warm_up

PER_MODEL_PARAMETERS = "batching_params.pbtxt"
_POOL = "model_server_batch_threads"

_log = logging.getLogger(__name__)


class Loader:
    """Loads versions as the flags say; owns the threads that run batches."""

    def __init__(self, flags: Flags, metrics: Metrics) -> None:
        """Reads the files that the flags name.

        Raises:
            Failure: one of them is not as it should be.
        """
        self._flags = flags
        self._metrics = metrics
        self._session_config = session_config(flags)
        self._tags = flags.saved_model_tags.split(",")
        self._scheduler: Scheduler | None = None
        self._parameters = Parameters()
        if flags.enable_batching:
            message = BatchingParameters()
            if flags.batching_parameters_file:
                read_text(flags.batching_parameters_file, message)
            self._parameters = read_parameters(message)
            pool = message.thread_pool_name.value or _POOL
            self._scheduler = Scheduler(
                message.num_batch_threads.value or None, metrics.queueing(pool)
            )

    def load(self, model: str, number: int, folder: Path) -> Servable:
        """Loads a version and replays its warm-up requests.

        Raises:
            Failure: it cannot be loaded, or a warm-up request fails.
        """
        try:
            servable = self._read(folder)
        except Exception:
            self._metrics.load_attempt(str(folder), succeeded=False)
            raise
        self._metrics.load_attempt(str(folder), succeeded=True)
        try:
            servable = self._batched(folder, servable)
            self._warm_up(servable, folder)
        except BaseException:
            servable.close()
            raise
        return servable

    def close(self) -> None:
        """Ends the threads; every version is closed already."""
        if self._scheduler is not None:
            self._scheduler.close()

    def _read(self, folder: Path) -> Servable:
        tflite = folder / TFLITE_MODEL
        if self._flags.prefer_tflite_model and tflite.is_file():
            from graftline.serving.server.tflite import TFLiteModel

            return TFLiteModel(tflite, self._flags.num_tflite_interpreters_per_pool)
        return SavedModel(folder, self._tags, self._session_config)

    def _batched(self, folder: Path, servable: Servable) -> Servable:
        if self._scheduler is None:
            return servable
        parameters = self._parameters
        if self._flags.enable_per_model_batching_parameters:
            file = folder / PER_MODEL_PARAMETERS
            if not file.is_file():
                return servable
            parameters = read_parameters(read_text(file, BatchingParameters()))
        return BatchingServable(servable, parameters, self._scheduler)

    def _warm_up(self, servable: Servable, folder: Path) -> None:
        if not self._flags.enable_model_warmup:
            return
        began = time.monotonic()
        code, count = Code.OK, 0
        iterations = max(1, self._flags.num_request_iterations_for_warmup)
        try:
            count = warm_up(servable, folder, iterations)
        except Exception as error:
            code = explain(error).code
            raise
        finally:
            if count or code is not Code.OK:
                self._metrics.warmed_up(str(folder), code, time.monotonic() - began)
        if count:
            _log.info("Replayed %d warm-up requests of %s", count, folder)
