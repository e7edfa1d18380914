"""Loading and unloading: what is aspired to is served, and something serves at all times."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftline.serving.server.manager import Manager
from graftline.serving.server.states import State, States
from graftline.serving.server.status import Code, Failure
from model_servers import until

FOLDER = Path("/nowhere")


class Version:
    """Stands for a loaded version; says when it is closed."""

    def __init__(self, closed: list[int], number: int):
        self.number = number
        self._closed = closed

    def close(self) -> None:
        self._closed.append(self.number)


class Models:
    """One model, `m`, under a manager; loads what it is told to, as it is told to."""

    def __init__(self, **options: float):
        self.failing: dict[int, int] = {}  # version: how often it still fails
        self.held: dict[int, threading.Event] = {}  # versions whose load waits
        self.loads: list[int] = []
        self.closed: list[int] = []
        self.states = States()
        settings = {"load_threads": 2, "unload_threads": 1, "retries": 1, "retry_interval": 0.0}
        self.manager = Manager(self._load, self.states, **(settings | options))

    def _load(self, model: str, number: int, path: Path) -> Version:
        self.loads.append(number)
        if number in self.held:
            self.held[number].wait()
        if self.failing.get(number, 0) > 0:
            self.failing[number] -= 1
            raise ValueError(f"{number} is broken")
        return Version(self.closed, number)

    def aspire(self, *numbers: int) -> None:
        self.manager.aspire("m", {number: FOLDER / str(number) for number in numbers})

    def now(self) -> dict[int, str]:
        return {number: state.state.name for number, state in self.states.of("m").items()}

    def until(self, **expected: str) -> None:
        wanted = {int(name[1:]): state for name, state in expected.items()}
        until(lambda: self.now() == wanted, f"{wanted}, last {self.now()}")

    def served(self, number: int | None = None) -> int:
        with self.manager.use("m", number) as (found, _):
            return found


@pytest.fixture
def models() -> Iterator[Models]:
    made = Models()
    yield made
    for held in made.held.values():
        held.set()
    made.manager.close()


def test_what_is_aspired_to_is_loaded(models):
    models.aspire(1, 2)
    models.until(v1="AVAILABLE", v2="AVAILABLE")
    assert models.served() == 2
    assert models.served(1) == 1


def test_what_is_not_loaded_is_not_found(models):
    models.aspire(1)
    models.until(v1="AVAILABLE")
    for number, said in ((None, "Latest(x)"), (7, "Specific(x, 7)")):
        with pytest.raises(Failure) as failure, models.manager.use("x", number):
            pass
        assert failure.value.code is Code.NOT_FOUND
        assert failure.value.message == f"Servable not found for request: {said}"


def test_the_new_version_is_loaded_before_the_old_one_is_unloaded(models):
    models.aspire(1)
    models.until(v1="AVAILABLE")
    models.held[2] = threading.Event()
    models.aspire(2)
    models.until(v1="AVAILABLE", v2="LOADING")
    assert models.served() == 1
    models.held[2].set()
    models.until(v1="END", v2="AVAILABLE")
    assert models.served() == 2
    assert models.closed == [1]


def test_a_version_that_fails_leaves_the_old_one_in_service(models):
    models.aspire(1)
    models.until(v1="AVAILABLE")
    models.failing[2] = 99
    models.aspire(2)
    models.until(v1="AVAILABLE", v2="END")
    assert models.served() == 1
    assert models.states.of("m")[2].error.message == "ValueError: 2 is broken"


def test_a_load_that_fails_is_tried_again_as_often_as_said(models):
    models.failing[1] = 1
    models.aspire(1)
    models.until(v1="AVAILABLE")
    assert models.loads == [1, 1]


def test_a_version_that_failed_for_good_is_not_tried_again_while_it_is_aspired_to(models):
    models.failing[1] = 2
    models.aspire(1)
    models.until(v1="END")
    models.aspire(1)
    models.aspire(1, 2)
    models.until(v1="END", v2="AVAILABLE")
    assert models.loads == [1, 1, 2]
    models.aspire(2)
    until(lambda: 1 not in models.manager._versions["m"])
    models.aspire(1, 2)
    models.until(v1="AVAILABLE", v2="AVAILABLE")


def test_a_version_that_waits_for_its_next_try_does_not_hold_up_others_and_can_be_given_up():
    models = Models(load_threads=1, retries=5, retry_interval=3600)
    models.failing[1] = 99
    models.aspire(1)
    until(lambda: models.loads == [1])
    models.aspire(1, 2)
    models.until(v1="LOADING", v2="AVAILABLE")
    models.aspire(2)
    models.until(v1="END", v2="AVAILABLE")
    models.manager.close()


def test_nothing_aspired_to_unloads_all(models):
    models.aspire(1, 2)
    models.until(v1="AVAILABLE", v2="AVAILABLE")
    models.aspire()
    models.until(v1="END", v2="END")
    assert sorted(models.closed) == [1, 2]


def test_a_version_is_unloaded_only_when_nobody_uses_it(models):
    models.aspire(1)
    models.until(v1="AVAILABLE")
    with models.manager.use("m", 1):
        models.aspire(2)
        models.until(v1="UNLOADING", v2="AVAILABLE")
        assert models.closed == []
        with pytest.raises(Failure):
            models.served(1)
    models.until(v1="END", v2="AVAILABLE")
    assert models.closed == [1]


def test_a_version_aspired_to_again_while_it_is_unloaded_is_loaded_after(models):
    models.aspire(1)
    models.until(v1="AVAILABLE")
    with models.manager.use("m", 1):
        models.aspire()
        models.until(v1="UNLOADING")
        models.aspire(1)
    models.until(v1="AVAILABLE")
    assert models.loads == [1, 1]


def test_going_back_to_a_version_that_is_still_loaded_loads_nothing(models):
    models.aspire(1)
    models.until(v1="AVAILABLE")
    models.held[2] = threading.Event()
    models.aspire(2)
    models.until(v1="AVAILABLE", v2="LOADING")
    models.aspire(1)
    models.held[2].set()
    models.until(v1="AVAILABLE", v2="END")
    assert models.loads == [1, 2]


def test_waiting_for_models_ends_when_each_serves_or_has_ended(models):
    models.failing[3] = 99
    models.aspire(1, 3)
    models.manager.aspire("bad", {3: FOLDER})
    ended = models.states.wait(["m", "bad"], 0, lambda: True)
    assert [(model, number) for model, number in ended] == [("bad", 3)]
    assert models.states.of("m")[1].state is State.AVAILABLE
    assert models.states.wait(["never"], 0, lambda: False) == {}
