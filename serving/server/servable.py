"""One loaded version: a SavedModel in a session of its own.

In: a version's folder. Out: its signatures, and `run`, which feeds and fetches tensors by name, as
the real server's `Session::Run` does: shapes are checked by the graph's ops, not by the
placeholders.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session as tf_session

from graftline.serving.server.flags import Flags
from graftline.serving.server.status import Code, Failure, explain, invalid
from graftline.serving.server.text_protos import read_text

# The session keeps a graph, pruned and optimized, for every set of inputs and outputs. A client
# that asks for ever other subsets of many outputs must not fill the memory with them.
_MOST_COMPILED = 256


class Servable(Protocol):
    """What answers for one version."""

    signatures: Mapping[str, Any]

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> dict[str, np.ndarray]:
        """Computes tensors.

        Args:
            feeds: arrays by tensor name, such as `x:0`.
            fetches: names of the tensors to compute.
            timeout_ms: after which the computation is given up; 0 for never.

        Raises:
            Failure: it was not possible.
        """

    def close(self) -> None:
        """Frees its memory. Called once, when nothing runs any more."""


class SavedModel:
    """A SavedModel of any kind: TensorFlow 1, TensorFlow 2, Keras."""

    def __init__(self, folder: Path, tags: Sequence[str], session_config: Any) -> None:
        """Loads it.

        Args:
            folder: of the version.
            tags: which of its graphs.
            session_config: a ConfigProto.

        Raises:
            Failure: it is none, is damaged, or has no graph with these tags.
        """
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=session_config)
        try:
            with self._graph.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(
                    self._session, list(tags), str(folder)
                )
                self._session._extend_graph()
        except Exception as error:
            self.close()
            if isinstance(error, (OSError, RuntimeError, ValueError, KeyError, TypeError)):
                raise invalid(f"Could not load the SavedModel in {folder}: {error}") from error
            raise explain(error) from error
        # Its graph, which may be large, goes with the message.
        self.signatures: Mapping[str, Any] = {
            name: type(signature).FromString(signature.SerializeToString())
            for name, signature in meta_graph.signature_def.items()
        }
        del meta_graph
        _give_memory_back()
        self._outputs: dict[str, Any] = {}
        self._compiled: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> dict[str, np.ndarray]:
        """See `Servable`."""
        wanted = sorted(set(fetches))
        fed = {self._output(name): array for name, array in feeds.items()}
        fetched = [self._output(name) for name in wanted]
        self._limit((*sorted(feeds), "", *wanted))
        options = None
        try:
            if timeout_ms:
                serialized = config_pb2.RunOptions(timeout_in_ms=timeout_ms).SerializeToString()
                options = tf_session.TF_NewBufferFromString(serialized)
            # `Session.run` without its checks of shapes, which the graph's ops make themselves.
            values = self._session._call_tf_sessionrun(options, fed, fetched, [], None)
        except Exception as error:
            raise explain(error) from error
        finally:
            if options is not None:
                tf_session.TF_DeleteBuffer(options)
        return dict(zip(wanted, values, strict=True))

    def close(self) -> None:
        """See `Servable`."""
        self._session.close()
        del self._session, self._graph
        _give_memory_back()

    def _output(self, name: str) -> Any:
        found = self._outputs.get(name)
        if found is None:
            try:
                found = self._graph.get_tensor_by_name(name)._as_tf_output()
            except (KeyError, ValueError):
                raise invalid(f"Tensor {name} is not in the graph") from None
            self._outputs[name] = found
        return found

    def _limit(self, tensors: tuple[str, ...]) -> None:
        """Notes a set of inputs and outputs.

        Raises:
            Failure: there are too many different ones already.
        """
        if tensors in self._compiled:
            return
        with self._lock:
            if len(self._compiled) == _MOST_COMPILED:
                raise Failure(
                    Code.RESOURCE_EXHAUSTED,
                    f"More than {_MOST_COMPILED} different sets of outputs were asked for",
                )
            self._compiled.add(tensors)


def _give_memory_back() -> None:
    """What loading or unloading has left, eighty megabytes of a small network's loading."""
    gc.collect()  # a graph and its session refer to each other
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def session_config(flags: Flags) -> Any:
    """The ConfigProto of all sessions.

    Raises:
        Failure: --tensorflow_session_config_file does not parse.
    """
    config = tf.compat.v1.ConfigProto()
    if flags.tensorflow_session_config_file:
        read_text(flags.tensorflow_session_config_file, config)
    shared = flags.tensorflow_session_parallelism
    config.intra_op_parallelism_threads = (
        flags.tensorflow_intra_op_parallelism or shared or config.intra_op_parallelism_threads
    )
    config.inter_op_parallelism_threads = (
        flags.tensorflow_inter_op_parallelism or shared or config.inter_op_parallelism_threads
    )
    if flags.per_process_gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = flags.per_process_gpu_memory_fraction
    if flags.mixed_precision:
        rewriting = config.graph_options.rewrite_options
        rewriting.auto_mixed_precision_onednn_bfloat16 = rewriting.ON
    return config
