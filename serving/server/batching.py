"""Runs the requests of several clients as one batch, with TensorFlow Serving's parameters.

One queue for each version and set of tensors; the outermost dimension is the batch. As
`tensorflow_serving/batching/`, but for one thing: where a batch fails for an input, its requests
are run one by one, so that one client's bad image does not fail the others' good ones.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import numpy as np

from graftline.serving.server.batch_scheduler import Arrays, Parameters, Queue, Scheduler, Task
from graftline.serving.server.servable import Servable
from graftline.serving.server.status import Code, Failure, explain, invalid

# Failures that one request's input can cause; the others hit every request alike.
_INPUT_FAILURES = (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.FAILED_PRECONDITION)
_DIFFERENT = "from different tasks have different shapes and padding is turned off"


def read_parameters(message: Any) -> Parameters:
    """What a BatchingParameters message says.

    Raises:
        Failure: it contradicts itself.
    """

    def value(field: str, default: int) -> int:
        return getattr(message, field).value if message.HasField(field) else default

    sizes = tuple(message.allowed_batch_sizes)
    splitting = message.enable_large_batch_splitting.value
    largest = value("max_batch_size", 1000)
    parameters = Parameters(
        max_batch_size=largest,
        timeout=value("batch_timeout_micros", 0) / 1e6,
        max_enqueued_batches=value("max_enqueued_batches", 10),
        allowed_batch_sizes=sizes,
        pad_variable_length_inputs=message.pad_variable_length_inputs,
        max_execution_batch_size=(value("max_execution_batch_size", largest) if splitting else 0),
    )
    if parameters.max_batch_size < 1 or parameters.max_enqueued_batches < 1:
        raise invalid("max_batch_size and max_enqueued_batches must be positive")
    if parameters.timeout < 0:
        raise invalid("batch_timeout_micros must not be negative")
    if list(sizes) != sorted(set(sizes)):
        raise invalid("allowed_batch_sizes entries must be monotonically increasing")
    last = parameters.max_execution_batch_size or largest
    if sizes and sizes[-1] != last:
        raise invalid(
            "final entry in allowed_batch_sizes must equal max_batch_size when "
            "enable_large_batch_splitting is false; and max_execution_batch_size otherwise"
        )
    if splitting and not 1 <= last <= largest:
        raise invalid("max_execution_batch_size must be between 1 and max_batch_size")
    return parameters


class BatchingServable:
    """A version whose requests are run together with those of other clients."""

    def __init__(self, servable: Servable, parameters: Parameters, scheduler: Scheduler) -> None:
        """Wraps a servable; `close` closes that, too.

        Args:
            servable: runs the batches.
            parameters: how they are made.
            scheduler: whose threads run them.
        """
        self.signatures = servable.signatures
        self._servable = servable
        self._parameters = parameters
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._queues: dict[Any, Queue] = {}
        # A queue for every signature; other sets of tensors, such as filtered outputs, are run as
        # they come, so that clients cannot make queues without end.
        self._batched = {
            _key([i.name for i in s.inputs.values()], [o.name for o in s.outputs.values()])
            for s in servable.signatures.values()
        }

    def run(
        self, feeds: Arrays, fetches: Sequence[str], timeout_ms: int = 0
    ) -> dict[str, np.ndarray]:
        """See `Servable`; the outermost dimension of every input and output is the batch."""
        if _key(feeds, fetches) not in self._batched:
            return self._servable.run(feeds, fetches, timeout_ms)
        rows = _rows(feeds)
        if not rows:
            return self._servable.run(feeds, fetches, timeout_ms)
        deadline = time.monotonic() + timeout_ms / 1e3 if timeout_ms else None
        tasks = [Task(part, size, deadline) for part, size in self._parts(feeds, rows)]
        queue = self._queue(feeds, fetches)
        if len(tasks) == 1 and self._scheduler.begin(queue):
            try:
                queue.run(tasks)
            finally:
                self._scheduler.end()
        else:
            self._scheduler.add(queue, tasks)
        try:
            results = [
                task.result.result(deadline and max(0.0, deadline - time.monotonic()))
                for task in tasks
            ]
        except FutureTimeout:
            raise _timed_out() from None
        if len(results) == 1:
            return dict(results[0])
        return {name: np.concatenate([part[name] for part in results]) for name in results[0]}

    def close(self) -> None:
        """See `Servable`."""
        for queue in self._queues.values():
            self._scheduler.discard(queue)
        self._servable.close()

    def _parts(self, feeds: Arrays, rows: int) -> list[tuple[Arrays, int]]:
        """The request whole, or in parts that fit into a batch."""
        size = self._parameters.max_execution_batch_size
        if not size and rows > self._parameters.max_batch_size:
            raise invalid(
                f"Task size {rows} is larger than maximum input batch size "
                f"{self._parameters.max_batch_size}"
            )
        if not size or rows <= size:
            return [(feeds, rows)]
        return [
            ({name: array[start : start + size] for name, array in feeds.items()}, part)
            for start in range(0, rows, size)
            for part in [min(size, rows - start)]
        ]

    def _queue(self, feeds: Arrays, fetches: Sequence[str]) -> Queue:
        key = _key(feeds, fetches)
        with self._lock:
            if key not in self._queues:
                wanted = sorted(set(fetches))
                limit = self._parameters.max_execution_batch_size or self._parameters.max_batch_size
                self._queues[key] = Queue(
                    self._parameters, lambda tasks: self._run_batch(tasks, wanted), limit
                )
                self._scheduler.open(self._queues[key])
            return self._queues[key]

    def _run_batch(self, tasks: Sequence[Task], fetches: Sequence[str]) -> None:
        """Runs a batch and gives each task its rows of the results, or the failure."""
        now = time.monotonic()
        late = [task for task in tasks if task.deadline is not None and task.deadline <= now]
        for task in late:
            task.result.set_exception(_timed_out())
        tasks = [task for task in tasks if task not in late]
        if not tasks:
            return
        try:
            results = self._compute(tasks, fetches)
        except Exception as raised:
            failure = explain(raised)
            if len(tasks) > 1 and failure.code in _INPUT_FAILURES and not _own_fault(failure):
                for task in tasks:
                    self._run_batch([task], fetches)
                return
            for task in tasks:
                task.result.set_exception(Failure(failure.code, failure.message))
            return
        start = 0
        for task in tasks:
            task.result.set_result(
                {name: array[start : start + task.rows] for name, array in results.items()}
            )
            start += task.rows

    def _compute(self, tasks: Sequence[Task], fetches: Sequence[str]) -> dict[str, np.ndarray]:
        rows = sum(task.rows for task in tasks)
        padding = self._padding(rows)
        feeds = {
            name: _join([task.feeds[name] for task in tasks], padding, self._parameters, name)
            for name in tasks[0].feeds
        }
        results = self._servable.run(feeds, fetches, _time_left(tasks))
        for array in results.values():
            if not array.ndim:
                raise Failure(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
            if len(array) != rows + padding:
                raise Failure(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    "dimension sizes of the input tensors",
                )
        return results

    def _padding(self, rows: int) -> int:
        sizes = self._parameters.allowed_batch_sizes
        if not sizes or rows > sizes[-1]:
            return 0
        return sizes[bisect.bisect_left(sizes, rows)] - rows


def _join(
    arrays: Sequence[np.ndarray], padding: int, parameters: Parameters, name: str
) -> np.ndarray:
    """One array of all rows; the first row is repeated as padding."""
    if len({array.shape[1:] for array in arrays}) > 1:
        if not parameters.pad_variable_length_inputs:
            raise Failure(
                Code.FAILED_PRECONDITION,
                f"Tensors with name '{name}' {_DIFFERENT}. Set pad_variable_length_inputs to true, "
                "or ensure that all tensors with the same name have equal dimensions starting with "
                "the first dim.",
            )
        arrays = _padded(arrays, name)
    if len({array.dtype for array in arrays}) > 1:
        raise invalid(f"Tensors with name '{name}' from different tasks have different types")
    if padding:
        arrays = [*arrays, np.repeat(arrays[0][:1], padding, axis=0)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _padded(arrays: Sequence[np.ndarray], name: str) -> list[np.ndarray]:
    """Pads every dimension but the first to the largest, with zeros or empty strings."""
    if len({array.ndim for array in arrays}) > 1:
        raise invalid(f"Tensors with name '{name}' from different tasks have different ranks")
    largest = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
    padded = []
    for array in arrays:
        empty: Any = b"" if array.dtype == object else 0
        target = np.full((len(array), *largest), empty, dtype=array.dtype)
        target[tuple(slice(size) for size in array.shape)] = array
        padded.append(target)
    return padded


def _time_left(tasks: Sequence[Task]) -> int:
    """Milliseconds after which nobody waits for any of them; 0 where somebody waits for ever."""
    deadlines = [task.deadline for task in tasks if task.deadline is not None]
    if len(deadlines) < len(tasks):
        return 0
    return max(1, round(1e3 * (max(deadlines) - time.monotonic())))


def _rows(feeds: Arrays) -> int:
    """The size of the outermost dimension of all inputs.

    Raises:
        Failure: they have none, or different ones.
    """
    if not feeds or any(not array.ndim for array in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _key(feeds: Any, fetches: Any) -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(feeds), frozenset(fetches)


def _own_fault(failure: Failure) -> bool:
    """Whether the requests of a batch do not go together, which the real server refuses, too."""
    return _DIFFERENT in failure.message


def _timed_out() -> Failure:
    return Failure(Code.DEADLINE_EXCEEDED, "Run() timeout exceeded while waiting in batching queue")
