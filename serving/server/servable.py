"""One loaded version: a SavedModel in a session of its own.

In: a version's folder. Out: its signatures, and `run`, which feeds and fetches tensors by name, as
the real server's `Session::Run` does: shapes are checked by the graph's ops, not by the
placeholders.
"""

from __future__ import annotations

import collections
import gc
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from graftline.serving.server.flags import Flags
from graftline.serving.server.status import explain, invalid
from graftline.serving.server.text_protos import read_text

# Every set of inputs and outputs is compiled once. A client that asks for ever other subsets of
# many outputs must not fill the memory with them.
_MOST_CALLABLES = 64


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
        self._callables: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> dict[str, np.ndarray]:
        """See `Servable`."""
        names = tuple(sorted(feeds))
        wanted = tuple(sorted(set(fetches)))
        try:
            function = self._callable(names, wanted, timeout_ms)
            values = function(*(feeds[name] for name in names))
        except Exception as error:
            raise explain(error) from error
        return dict(zip(wanted, values, strict=True))

    def close(self) -> None:
        """See `Servable`."""
        self._callables = collections.OrderedDict()
        self._session.close()
        del self._session, self._graph
        # A graph and its session refer to each other; without this their memory stays for a while.
        gc.collect()

    def _callable(self, names: tuple[str, ...], wanted: tuple[str, ...], timeout_ms: int) -> Any:
        key = (names, wanted, timeout_ms)
        with self._lock:
            if key in self._callables:
                self._callables.move_to_end(key)
                return self._callables[key]
            options = config_pb2.CallableOptions(feed=names, fetch=wanted)
            options.run_options.timeout_in_ms = timeout_ms
            made = self._session._make_callable_from_options(options)
            self._callables[key] = made
            if len(self._callables) > _MOST_CALLABLES:
                self._callables.popitem(last=False)
            return made


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
