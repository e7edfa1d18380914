"""The threads that run batches, and the queues in which requests wait for them.

As TensorFlow's `shared_batch_scheduler.h`: a batch is closed when it is full, and due when it is
closed or has waited for its timeout; threads serve the queues in turn. Knows nothing of tensors but
how many rows a task has.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import msgspec
import numpy as np

from graftline.serving.server.status import Code, Failure

Arrays = Mapping[str, np.ndarray]


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


class Task:
    """The rows of one request, or a part of them."""

    def __init__(self, feeds: Arrays, rows: int, deadline: float | None) -> None:
        self.feeds = feeds
        self.rows = rows
        self.deadline = deadline
        self.enqueued = time.monotonic()
        self.result: Future[Arrays] = Future()


class Batch:
    """Tasks that are run together."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.rows = 0
        self.closed = False


class Queue:
    """Batches that wait to be run; touched only under the scheduler's lock."""

    def __init__(
        self, parameters: Parameters, run: Callable[[Sequence[Task]], None], limit: int
    ) -> None:
        self.parameters = parameters
        self.run = run
        self.limit = limit
        self.batches: collections.deque[Batch] = collections.deque()

    def add(self, tasks: Sequence[Task]) -> None:
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
                self.batches.append(Batch())
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
        self._queues: list[Queue] = []
        self._closing = False
        count = threads or len(os.sched_getaffinity(0))
        self._idle = count  # batches that may begin
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def open(self, queue: Queue) -> None:
        """Begins to serve a queue."""
        with self._changed:
            self._queues.append(queue)

    def discard(self, queue: Queue) -> None:
        """Ends serving a queue, which is empty."""
        with self._changed:
            self._queues.remove(queue)

    def add(self, queue: Queue, tasks: Sequence[Task]) -> None:
        """Adds tasks to a queue, all or none.

        Raises:
            Failure: the queue is full.
        """
        with self._changed:
            queue.add(tasks)
            self._changed.notify()

    def begin(self, queue: Queue) -> bool:
        """Whether the caller may run its request itself, at once: nothing waits, a thread is idle.

        It then calls `end`. So a lone client is not handed from thread to thread.
        """
        with self._changed:
            free = self._idle and not queue.parameters.timeout
            if not free or any(other.batches for other in self._queues):
                return False
            self._idle -= 1
        if self._waited is not None:
            self._waited(0.0)  # counted like the others: of a quiet server, too, one sees that
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

    def _take(self) -> tuple[Queue, list[Task]] | None:
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
