"""Changing what real servers serve: under load, with servers that do not follow, with kills."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Command, graftline
from commands import answer as read
from graftline.serving import traffic
from graftline.serving.base_path import BasePath
from graftline.serving.config import ServingConfig
from graftline.serving.errors import UserError
from graftline.serving.manifest import Manifest
from graftline.serving.models_config import Choice, ModelsConfig
from graftline.serving.switching import Switchboard
from graftline.serving.traffic import Traffic
from model_servers import ModelServer, linear_model, serving, until

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models that answer 0 with 1, 2, 3, ..."""
    folder = tmp_path_factory.mktemp("trained")
    return [linear_model(folder / str(number), add=number) for number in range(1, 7)]


@pytest.fixture
def base_path(tmp_path: Path, trained: list[Path]) -> BasePath:
    """Versions 1, 2 and 3, of which each answers 0 with its number."""
    base_path = BasePath(tmp_path / "serving" / "flowers")
    for number in (1, 2, 3):
        publish(base_path, trained, number)
    return base_path


def publish(base_path: BasePath, trained: list[Path], number: int) -> None:
    description = Manifest(model="flowers", model_id=str(number))
    assert base_path.publish(trained[number - 1], description) == number


def following(folder: Path, base_path: BasePath) -> contextlib.AbstractContextManager[ModelServer]:
    """A server that follows `models.config`."""
    return serving(
        folder,
        f"--model_config_file={base_path.root.parent}/models.config",
        "--model_config_file_poll_wait_seconds=1",
        "--file_system_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models=true",
        ports="rest",
    )


def switchboard(base_path: BasePath, *servers: ModelServer, seconds: float = 30) -> Switchboard:
    addresses = tuple(f"http://127.0.0.1:{server.rest_port}" for server in servers)
    return Switchboard(base_path, ServingConfig(servers=addresses, wait_seconds=seconds))


@pytest.fixture
def server(tmp_path: Path, base_path: BasePath) -> Iterator[ModelServer]:
    Switchboard(base_path, ServingConfig()).write()
    with following(tmp_path, base_path) as server:
        yield server


def answer(server: ModelServer, path: str = "flowers") -> float:
    [found] = server.predict(0.0, path=path)
    return found


class Load:
    """Clients that ask without pause, and note whoever answers that should not.

    Args:
        server: whom they ask.
        path: for what, below `/v1/models/`.
    """

    def __init__(self, server: ModelServer, path: str) -> None:
        self.meant: set[int] = set()
        self.answered = 0
        self.wrong: list[object] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server, path)) for _ in range(3)]

    def _ask(self, server: ModelServer, path: str) -> None:
        while not self._ended.is_set():
            before = self.meant
            try:
                status, body = server.post(f"{path}:predict", {"instances": [0.0]})
            except OSError as error:
                self.wrong.append(error)
                continue
            if status != 200 or body["predictions"][0] not in before | self.meant:
                self.wrong.append((before, status, body))
            self.answered += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def while_it_changes(self, new: int) -> Iterator[None]:
        """Until then the old ones may answer, afterwards the new one alone."""
        self.meant = self.meant | {new}
        yield
        self.meant = {new}


def test_under_load_no_request_fails_and_no_other_version_answers(server, base_path, trained):
    board = switchboard(base_path, server)
    board.promote(3)
    with Load(server, "flowers/labels/stable") as load:
        load.meant = {3}
        for number in (4, 5):
            publish(base_path, trained, number)
            board.canary(number, 10)
            assert answer(server, "flowers/labels/canary") == number
            with load.while_it_changes(number):
                board.promote(number)
            with load.while_it_changes(number - 1):
                board.rollback(number - 1)
            with load.while_it_changes(number):
                board.rollback(number)
    assert load.answered > 50
    assert not load.wrong


def test_a_pinned_version_answers_until_it_is_unpinned(server, base_path, trained):
    board = switchboard(base_path, server)
    with Load(server, "flowers") as load:
        load.meant = {3}
        with load.while_it_changes(2):
            board.pin(2)
        publish(base_path, trained, 4)
        time.sleep(1.5)  # two looks of the server
        with load.while_it_changes(4):
            board.unpin()
    assert not load.wrong


def test_the_split_names_a_label_only_while_servers_know_it(server, base_path):
    board = switchboard(base_path, server)
    root = base_path.root
    board.promote(1)
    assert traffic.read(root) == Traffic(stable=1)
    board.canary(3, 20)
    assert traffic.read(root) == Traffic(stable=1, canary=3, canary_percent=20)
    board.canary(3, 40)
    assert traffic.read(root).canary_percent == 40
    board.end_canary()
    assert traffic.read(root) == Traffic(stable=1)
    until(lambda: server.states("flowers").get(3) != "AVAILABLE", "the canary's end")
    board.unpin()
    assert traffic.read(root) == Traffic()
    assert answer(server) == 3


def test_what_one_server_does_not_follow_is_undone_on_all(server, base_path, tmp_path):
    board = switchboard(base_path, server)
    board.promote(2)
    watching = f"--model_base_path={base_path.root}"
    with serving(tmp_path, watching, "--model_name=flowers", ports="rest") as deaf:
        both = switchboard(base_path, server, deaf, seconds=4)
        with pytest.raises(UserError, match=f"not every server has.*{deaf.rest_port}") as error:
            both.promote(1)
    assert "--model_config_file" in str(error.value)
    assert ModelsConfig(base_path.root).read() == Choice((2,), {"stable": 2})
    server.until_states({1: "END", 2: "AVAILABLE", 3: "END"}, "flowers")
    assert answer(server, "flowers/labels/stable") == 2
    assert base_path.in_service() == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda board: board.canary(3, 10),
        lambda board: board.unpin(),
        lambda board: board.rollback(1),
        lambda board: board.rollback(4),
    ],
    ids=["canary", "unpin", "rollback", "rollback to a withdrawn version"],
)
def test_whatever_the_change_it_is_undone_where_a_server_does_not_follow(
    server, base_path, trained, change
):
    publish(base_path, trained, 4)
    base_path.withdraw(4)
    switchboard(base_path, server).promote(2)
    before = base_path.versions(), traffic.read(base_path.root)
    address = f"http://127.0.0.1:{server.rest_port}"
    config = ServingConfig(servers=(address, "http://127.0.0.1:1"), wait_seconds=3)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 cannot be reached"):
        change(Switchboard(base_path, config))
    assert ModelsConfig(base_path.root).read() == Choice((2,), {"stable": 2})
    assert (base_path.versions(), traffic.read(base_path.root)) == before
    states = server.states
    until(lambda: [n for n, said in states("flowers").items() if said == "AVAILABLE"] == [2])
    assert answer(server, "flowers/labels/stable") == 2


def test_going_back_by_the_base_path_is_undone_also_where_the_version_left_is_damaged(base_path):
    with (base_path.folder(3) / "saved_model.pb").open("ab") as file:
        file.write(b"damage")
    before = base_path.versions()
    assert base_path.verify(3)[3]
    config = ServingConfig(servers=("http://127.0.0.1:1",), wait_seconds=0.3)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 cannot be reached"):
        Switchboard(base_path, config).rollback()
    assert base_path.versions() == before


def test_undone_a_rollback_withdraws_the_version_that_it_had_restored(base_path):
    base_path.withdraw(3)
    before = base_path.versions()
    config = ServingConfig(servers=("http://127.0.0.1:1",), wait_seconds=0.3)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 cannot be reached"):
        Switchboard(base_path, config).rollback(3)
    assert base_path.versions() == before


def test_every_server_behind_a_name_is_waited_for(server, base_path, tmp_path, monkeypatch):
    resolve = socket.getaddrinfo

    def name_service(host: str, *arguments: object, **named: object) -> list:
        hosts = ["127.0.0.1", "127.0.0.2"] if host == "models.test" else [host]
        return [found for each in hosts for found in resolve(each, *arguments, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", name_service)
    config = ServingConfig(servers=(f"http://models.test:{server.rest_port}",), wait_seconds=4)
    flags = (f"--model_base_path={base_path.root}", "--model_name=flowers")
    elsewhere = ModelServer(
        tmp_path, *flags, "--bind_address=127.0.0.2", ports="rest", after=server
    )
    try:
        until(lambda: "Exporting HTTP" in elsewhere.output, "the second server")
        with pytest.raises(
            UserError, match=rf"models\.test:{server.rest_port} \(127\.0\.0\.2\) has versions 3"
        ):
            Switchboard(base_path, config).promote(2)
    finally:
        elsewhere.process.kill()
        elsewhere.process.join()
    assert ModelsConfig(base_path.root).read() == Choice()
    server.until_states({3: "AVAILABLE", 2: "END"}, "flowers")


def test_a_server_that_cannot_be_reached_is_named(server, base_path):
    board = switchboard(base_path, server)
    server.process.kill()
    server.process.join()
    board = switchboard(base_path, server, seconds=0.5)
    with pytest.raises(UserError, match=rf"{server.rest_port} cannot be reached"):
        board.pin(1)
    assert ModelsConfig(base_path.root).read() == Choice()
    assert base_path.in_service() == 3


def test_what_is_no_model_server_is_named(tmp_path, base_path):
    import http.server

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        board = Switchboard(base_path, ServingConfig())
        board.write()
        config = ServingConfig(servers=(f"http://127.0.0.1:{other.server_port}",), wait_seconds=0.5)
        with pytest.raises(UserError, match="not every server has version 1"):
            Switchboard(base_path, config).pin(1)
        other.shutdown()
        thread.join()


def test_going_back_reaches_a_server_that_watches_the_base_path(base_path, tmp_path):
    watching = f"--model_base_path={base_path.root}"
    flags = (watching, "--model_name=flowers")
    with serving(tmp_path, *flags, ports="rest") as server, Load(server, "flowers") as load:
        load.meant = {3}
        with load.while_it_changes(2):
            switchboard(base_path, server).rollback()
    assert not load.wrong


@pytest.fixture
def project(tmp_path: Path, base_path: BasePath, server: ModelServer) -> Path:
    """The project that has the base path and names the server."""
    address = f"http://127.0.0.1:{server.rest_port}"
    (tmp_path / "graftline.yaml").write_text(
        f"model: {{name: flowers}}\nserving: {{servers: ['{address}'], wait_seconds: 60}}\n"
    )
    return tmp_path


def test_after_a_kill_in_the_middle_servers_answer_and_the_change_can_be_made(
    project, server, base_path
):
    board = switchboard(base_path, server)
    board.promote(2)
    with Load(server, "flowers/labels/stable") as load:
        load.meant = {2}
        server.signal(signal.SIGSTOP)  # so that it never follows
        command = Command(project, "promote", "1")
        until(lambda: ModelsConfig(base_path.root).read().versions == (1, 2), "the first step")
        os.kill(command.process.pid, signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
        server.signal(signal.SIGCONT)
        assert base_path.in_service() == 2
        with load.while_it_changes(1):
            board.promote(1)
    assert not load.wrong


def test_versions_tells_what_each_server_has_and_which_cannot_be_asked(
    project, server, base_path, tmp_path
):
    switchboard(base_path, server).promote(2)
    watching = f"--model_base_path={base_path.root}"
    with serving(tmp_path, watching, "--model_name=flowers", ports="rest") as deaf:
        ports = (server.rest_port, deaf.rest_port, 1)
        addresses = [f"http://127.0.0.1:{port}" for port in ports]
        (project / "graftline.yaml").write_text(
            f"model: {{name: flowers}}\nserving: {{servers: {json.dumps(addresses)}}}\n"
        )
        said = graftline(project, "versions")
        data = read(project, "versions")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for beginning in ("2 in service stable 1 available, 1 -, 1 ?", "3 present 1 end, 1 available"):
        assert any(line.startswith(beginning) for line in lines), said
    assert f"{addresses[1]} does not serve version 2 (yet)." in lines
    assert any(line.startswith(f"{addresses[2]} cannot be reached") for line in lines)
    assert [one["versions"].get("2") for one in data["servers"]] == ["AVAILABLE", None, None]
    assert [bool(one["failure"]) for one in data["servers"]] == [False, False, True]


def test_of_two_who_promote_at_once_one_waits_or_is_told_to(project, server, base_path):
    switchboard(base_path, server).promote(3)
    commands = [Command(project, "promote", str(number)) for number in (1, 2)]
    ends = sorted((command.wait(), command.output) for command in commands)
    assert ends[0][0] == 0, ends
    assert ends[1][0] == 0 or "Another process has held" in ends[1][1], ends
    choice = ModelsConfig(base_path.root).read()
    assert choice.versions == (choice.held,)
    assert choice.held in (1, 2)
    assert answer(server, "flowers/labels/stable") == choice.held
    assert traffic.read(base_path.root) == Traffic(stable=choice.held)
