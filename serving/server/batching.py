"""Runs the requests of several clients as one batch, with TensorFlow Serving's parameters.

One queue for each version and set of tensors; a few threads, shared by all, take batches from the
queues in turn. The outermost dimension is the batch. As `tensorflow_serving/batching/` and
TensorFlow's `shared_batch_scheduler.h`, but for one thing: where a batch fails for an input, its
requests are run one by one, so that one client's bad image does not fail the others' good ones.
"""

from __future__ import annotations

import bisect
import collections
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import msgspec
import numpy as np

from graftline.serving.server.servable import Servable
from graftline.serving.server.status import Code, Failure, explain, invalid

_Arrays = Mapping[str, np.ndarray]
# Failures that one request's input can cause; the others hit every request alike.
_INPUT_FAILURES = (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.FAILED_PRECONDITION)


class Parameters(msgspec.Struct, frozen=True):
    """BatchingParameters with TensorFlow's defaults.

    Attributes:
        max_batch_size: rows at most, padding included.
        timeout: seconds that a batch waits for more rows while a thread is free.
        max_enqueued_batches: per queue; then requests are refused.
        allowed_batch_sizes: ascending; batches are padded up to one of them.
        pad_variable_length_inputs: whether rows of different shapes are padded to the largest.
        max_execution_batch_size: a larger request is split; 0 for refusing it.
    """

    max_batch_size: int = 1000
    timeout: float = 0.0
    max_enqueued_batches: int = 10
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    max_execution_batch_size: int = 0


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


class _Task:
    """The rows of one request, or a part of them."""

    def __init__(self, feeds: _Arrays, rows: int, deadline: float | None) -> None:
        self.feeds = feeds
        self.rows = rows
        self.deadline = deadline
        self.enqueued = time.monotonic()
        self.result: Future[_Arrays] = Future()


class _Batch:
    def __init__(self) -> None:
        self.tasks: list[_Task] = []
        self.rows = 0
        self.closed = False


class _Queue:
    """Batches that wait to be run; touched only under the scheduler's lock."""

    def __init__(
        self, parameters: Parameters, run: Callable[[Sequence[_Task]], None], limit: int
    ) -> None:
        self.parameters = parameters
        self.run = run
        self.limit = limit
        self.batches: collections.deque[_Batch] = collections.deque()

    def add(self, tasks: Sequence[_Task]) -> None:
        """Adds all or none.

        Raises:
            Failure: the queue is full.
        """
        open_rows = self.batches[-1].rows if self.batches else self.limit
        needed = 0
        for task in tasks:
            if open_rows + task.rows > self.limit:
                needed += 1
                open_rows = 0
            open_rows += task.rows
        if len(self.batches) + needed > self.parameters.max_enqueued_batches:
            raise Failure(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full",
            )
        for task in tasks:
            if not self.batches or self.batches[-1].rows + task.rows > self.limit:
                if self.batches:
                    self.batches[-1].closed = True
                self.batches.append(_Batch())
            batch = self.batches[-1]
            batch.tasks.append(task)
            batch.rows += task.rows
            batch.closed = batch.rows == self.limit

    def due(self) -> float | None:
        """When the first batch may be run, in monotonic seconds; None when there is none."""
        if not self.batches:
            return None
        first = self.batches[0]
        return 0.0 if first.closed else first.tasks[0].enqueued + self.parameters.timeout


class Scheduler:
    """The threads that run batches, and the queues that they serve in turn."""

    def __init__(self, threads: int | None = None, waited: Callable[[float], None] | None = None):
        """Starts the threads; `close` ends them.

        Args:
            threads: batches run at once; by default one for each core.
            waited: told how many seconds each request waited.
        """
        self._waited = waited
        self._changed = threading.Condition()
        self._queues: list[_Queue] = []
        self._closing = False
        count = threads or len(os.sched_getaffinity(0))
        self._idle = count  # batches that may begin
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def open(self, queue: _Queue) -> None:
        """Begins to serve a queue."""
        with self._changed:
            self._queues.append(queue)

    def discard(self, queue: _Queue) -> None:
        """Ends serving a queue, which is empty."""
        with self._changed:
            self._queues.remove(queue)

    def add(self, queue: _Queue, tasks: Sequence[_Task]) -> None:
        """Adds tasks to a queue, all or none.

        Raises:
            Failure: the queue is full.
        """
        with self._changed:
            queue.add(tasks)
            self._changed.notify()

    def begin(self, queue: _Queue) -> bool:
        """Whether the caller may run its request itself, at once: nothing waits, a thread is idle.

        It then calls `end`. So a lone client is not handed from thread to thread.
        """
        with self._changed:
            free = self._idle and not queue.parameters.timeout
            if not free or any(other.batches for other in self._queues):
                return False
            self._idle -= 1
            return True

    def end(self) -> None:
        """Says that what `begin` allowed is done."""
        with self._changed:
            self._idle += 1
            self._changed.notify()

    def close(self) -> None:
        """Ends the threads, once every batch was run."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                taken = self._take()
                while taken is None:
                    if self._closing and not any(queue.batches for queue in self._queues):
                        return
                    self._changed.wait(self._until_due())
                    taken = self._take()
            queue, tasks = taken
            if self._waited is not None:
                now = time.monotonic()
                for task in tasks:
                    self._waited(now - task.enqueued)
            queue.run(tasks)
            self.end()
            del queue, tasks, taken  # the next wait may be long, and the arrays large

    def _until_due(self) -> float | None:
        dues = [due for queue in self._queues if (due := queue.due()) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues and self._idle else None

    def _take(self) -> tuple[_Queue, list[_Task]] | None:
        if not self._idle:
            return None
        now = time.monotonic()
        for index, queue in enumerate(self._queues):
            due = queue.due()
            if due is not None and (due <= now or self._closing):
                # Served queues go to the end, so that a busy one does not starve the others.
                self._queues.append(self._queues.pop(index))
                self._idle -= 1
                return queue, queue.batches.popleft().tasks
        return None


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
        self._queues: dict[Any, _Queue] = {}
        # A queue for every signature; other sets of tensors, such as filtered outputs, are run as
        # they come, so that clients cannot make queues without end.
        self._batched = {
            _key([i.name for i in s.inputs.values()], [o.name for o in s.outputs.values()])
            for s in servable.signatures.values()
        }

    def run(
        self, feeds: _Arrays, fetches: Sequence[str], timeout_ms: int = 0
    ) -> dict[str, np.ndarray]:
        """See `Servable`; the outermost dimension of every input and output is the batch."""
        if _key(feeds, fetches) not in self._batched:
            return self._servable.run(feeds, fetches, timeout_ms)
        rows = _rows(feeds)
        if not rows:
            return self._servable.run(feeds, fetches, timeout_ms)
        deadline = time.monotonic() + timeout_ms / 1e3 if timeout_ms else None
        tasks = [_Task(part, size, deadline) for part, size in self._parts(feeds, rows)]
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

    def _parts(self, feeds: _Arrays, rows: int) -> list[tuple[_Arrays, int]]:
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

    def _queue(self, feeds: _Arrays, fetches: Sequence[str]) -> _Queue:
        key = _key(feeds, fetches)
        with self._lock:
            if key not in self._queues:
                wanted = sorted(set(fetches))
                limit = self._parameters.max_execution_batch_size or self._parameters.max_batch_size
                self._queues[key] = _Queue(
                    self._parameters, lambda tasks: self._run_batch(tasks, wanted), limit
                )
                self._scheduler.open(self._queues[key])
            return self._queues[key]

    def _run_batch(self, tasks: Sequence[_Task], fetches: Sequence[str]) -> None:
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

    def _compute(self, tasks: Sequence[_Task], fetches: Sequence[str]) -> dict[str, np.ndarray]:
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


_DIFFERENT = "from different tasks have different shapes and padding is turned off"


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


def _time_left(tasks: Sequence[_Task]) -> int:
    """Milliseconds after which nobody waits for any of them; 0 where somebody waits for ever."""
    deadlines = [task.deadline for task in tasks if task.deadline is not None]
    if len(deadlines) < len(tasks):
        return 0
    return max(1, round(1e3 * (max(deadlines) - time.monotonic())))


def _rows(feeds: _Arrays) -> int:
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
