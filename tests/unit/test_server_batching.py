"""Requests of several clients in one batch: sizes, padding, splitting, refusals, failures."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format

from graftline.serving.server.batch_scheduler import Parameters, Scheduler
from graftline.serving.server.batching import BatchingServable, read_parameters
from graftline.serving.server.status import Code, Failure, invalid
from graftline.serving.server.text_protos import BatchingParameters
from model_servers import until

SIGNATURE = SimpleNamespace(
    inputs={"x": SimpleNamespace(name="x:0")}, outputs={"y": SimpleNamespace(name="y:0")}
)


class Doubling:
    """Stands for a version: y is twice x; remembers its batches, and can be held up."""

    def __init__(self) -> None:
        self.signatures = {"serving_default": SIGNATURE}
        self.batches: list[list] = []
        self.free = threading.Event()
        self.free.set()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> dict[str, np.ndarray]:
        x = feeds["x:0"]
        self.batches.append(x.tolist())
        self.free.wait()
        if x.dtype != object and (x < 0).any():
            raise invalid("below zero")
        if x.size and x.dtype != object and x.max() > 1e6:
            raise Failure(Code.INTERNAL, "too large")
        return {"y:0": x + x}

    def close(self) -> None:
        pass


class Clients:
    """Asks a batching servable from threads of their own."""

    def __init__(self, waited: Callable[[float], None] | None = None, **parameters: object):
        self.model = Doubling()
        self.scheduler = Scheduler(threads=1, waited=waited)
        self.servable = BatchingServable(self.model, Parameters(**parameters), self.scheduler)
        self._threads = ThreadPoolExecutor(32)

    def ask(self, *rows: object, timeout_ms: int = 0) -> Future:
        x = np.array(rows, dtype=object if isinstance(rows[0], bytes) else np.float32)
        return self._threads.submit(
            lambda: self.servable.run({"x:0": x}, ["y:0"], timeout_ms)["y:0"].tolist()
        )

    def hold_up(self) -> None:
        """Keeps the only thread busy with a request of one 0."""
        self.model.free.clear()
        self.ask(0.0)
        until(lambda: self.model.batches)

    def enqueued(self, *rows: object, timeout_ms: int = 0) -> Future:
        """Asks, and returns when the request waits for its batch or is answered."""
        before = self.waiting()
        answer = self.ask(*rows, timeout_ms=timeout_ms)
        until(lambda: self.waiting() > before or answer.done())
        return answer

    def waiting(self) -> int:
        return sum(
            len(batch.tasks) for queue in list(self.scheduler._queues) for batch in queue.batches
        )

    def close(self) -> None:
        self.model.free.set()
        self._threads.shutdown()
        self.servable.close()
        self.scheduler.close()


@pytest.fixture
def clients() -> Iterator:
    made: list[Clients] = []

    def make(**parameters: object) -> Clients:
        made.append(Clients(**parameters))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_requests_that_wait_together_are_run_together(clients):
    some = clients()
    some.hold_up()
    answers = [some.enqueued(1, 2), some.enqueued(3), some.enqueued(4)]
    some.model.free.set()
    assert [answer.result() for answer in answers] == [[2, 4], [6], [8]]
    assert some.model.batches == [[0], [1, 2, 3, 4]]


def test_a_batch_is_no_larger_than_allowed(clients):
    some = clients(max_batch_size=3)
    some.hold_up()
    answers = [some.enqueued(1, 2), some.enqueued(3, 4), some.enqueued(5)]
    some.model.free.set()
    assert [answer.result() for answer in answers] == [[2, 4], [6, 8], [10]]
    assert some.model.batches == [[0], [1, 2], [3, 4, 5]]


def test_a_batch_waits_for_its_timeout_unless_it_is_full(clients):
    some = clients(max_batch_size=2, timeout=3600.0)
    first = some.enqueued(1)
    assert some.model.batches == []
    assert some.ask(2).result() == [4]
    assert first.result() == [2]


def test_a_batch_is_padded_up_to_an_allowed_size_with_its_first_row(clients):
    some = clients(max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    assert some.ask(1, 2, 3).result() == [2, 4, 6]
    assert some.ask(5).result() == [10]
    assert some.model.batches == [[1, 2, 3, 1], [5, 5]]


def test_a_request_larger_than_a_batch_is_refused(clients):
    with pytest.raises(Failure) as failure:
        clients(max_batch_size=2).ask(1, 2, 3).result()
    assert failure.value.code is Code.INVALID_ARGUMENT
    assert failure.value.message == "Task size 3 is larger than maximum input batch size 2"


def test_a_large_request_is_split_where_that_is_on(clients):
    some = clients(max_batch_size=10, max_execution_batch_size=2)
    assert some.ask(1, 2, 3, 4, 5).result() == [2, 4, 6, 8, 10]
    assert some.model.batches == [[1, 2], [3, 4], [5]]


def test_when_the_queue_is_full_requests_are_refused(clients):
    some = clients(max_batch_size=1, max_enqueued_batches=2)
    some.hold_up()
    answers = [some.enqueued(1), some.enqueued(2)]
    with pytest.raises(Failure) as failure:
        some.ask(3).result()
    assert failure.value.code is Code.UNAVAILABLE
    assert "queue to which this task was submitted is full" in failure.value.message
    some.model.free.set()
    assert [answer.result() for answer in answers] == [[2], [4]]


def test_one_clients_bad_input_does_not_fail_the_others(clients):
    some = clients()
    some.hold_up()
    good, bad = some.enqueued(1), some.enqueued(-1)
    some.model.free.set()
    assert good.result() == [2]
    with pytest.raises(Failure, match="below zero"):
        bad.result()
    assert some.model.batches == [[0], [1, -1], [1], [-1]]


def test_a_failure_that_is_nobodys_fault_fails_the_batch(clients):
    some = clients()
    some.hold_up()
    first, second = some.enqueued(1), some.enqueued(2e6)
    some.model.free.set()
    for answer in (first, second):
        with pytest.raises(Failure, match="too large"):
            answer.result()
    assert len(some.model.batches) == 2


def test_rows_of_different_shapes_fail_their_batch(clients):
    some = clients()
    some.hold_up()
    answers = [some.enqueued([1.0, 2.0]), some.enqueued([1.0])]
    some.model.free.set()
    for answer in answers:
        with pytest.raises(Failure, match="different shapes and padding is turned off") as failure:
            answer.result()
        assert failure.value.code is Code.FAILED_PRECONDITION


def test_rows_of_different_shapes_are_padded_where_that_is_on(clients):
    some = clients(pad_variable_length_inputs=True)
    some.hold_up()
    answers = [some.enqueued([1.0, 2.0]), some.enqueued([3.0])]
    some.model.free.set()
    assert [answer.result() for answer in answers] == [[[2, 4]], [[6, 0]]]


def test_strings_are_joined_and_padded_like_numbers(clients):
    some = clients(max_batch_size=4, allowed_batch_sizes=(4,))
    some.hold_up()
    answers = [some.enqueued(b"a"), some.enqueued(b"b", b"c")]
    some.model.free.set()
    assert [answer.result() for answer in answers] == [[b"aa"], [b"bb", b"cc"]]
    assert some.model.batches[1] == [b"a", b"b", b"c", b"a"]


def test_a_request_that_waits_longer_than_its_timeout_ends(clients):
    some = clients()
    some.hold_up()
    late = some.enqueued(1, timeout_ms=1)
    with pytest.raises(Failure) as failure:
        late.result()
    assert failure.value.code is Code.DEADLINE_EXCEEDED
    some.model.free.set()


def test_tensors_that_are_no_signature_are_run_as_they_come(clients):
    some = clients()
    some.hold_up()
    some.model.free.set()
    some.servable.run({"x:0": np.float32([1])}, ["y:0", "z:0"])
    some.servable.run({"x:0": np.float32([])}, ["y:0"])
    assert some.model.batches == [[0], [1], []]


def test_an_input_without_a_batch_is_refused(clients):
    with pytest.raises(Failure, match="at least one dimension"):
        clients().servable.run({"x:0": np.float32(1)}, ["y:0"])


def test_many_clients_get_their_own_answers(clients):
    some = clients(max_batch_size=7, max_enqueued_batches=1000, allowed_batch_sizes=(1, 4, 7))
    asked = [[n, n + 0.5] if n % 3 else [n] for n in range(300)]
    answers = [some.ask(*rows) for rows in asked]
    assert [answer.result() for answer in answers] == [[2 * x for x in rows] for rows in asked]


def test_how_long_every_request_waited_is_told_also_a_lone_clients():
    told: list[float] = []
    some = Clients(waited=told.append)
    try:
        some.ask(1.0).result()
        assert told == [0.0]
        some.model.batches.clear()
        some.hold_up()
        later = some.enqueued(2.0)
        some.model.free.set()
        later.result()
        assert len(told) == 3 and told[-1] > 0
    finally:
        some.close()


def test_closing_the_scheduler_runs_what_waits():
    some = Clients(timeout=3600.0)
    answer = some.enqueued(1)
    threading.Thread(target=some.scheduler.close).start()
    assert answer.result() == [2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("allowed_batch_sizes: 4 allowed_batch_sizes: 2", "monotonically increasing"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "final entry"),
        ("max_batch_size { value: 0 }", "must be positive"),
        ("batch_timeout_micros { value: -1 }", "must not be negative"),
        (
            "max_batch_size { value: 4 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 8 }",
            "between 1 and max_batch_size",
        ),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(text, said):
    with pytest.raises(Failure, match=said):
        read_parameters(text_format.Parse(text, BatchingParameters()))


def test_unset_parameters_are_tensorflows():
    assert read_parameters(BatchingParameters()) == Parameters(1000, 0.0, 10, (), False, 0)
