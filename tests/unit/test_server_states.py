"""Which servers an address stands for, and how each of them is asked."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from graftline.serving.errors import UserError
from graftline.serving.server_states import Servers, hosts_behind

HOSTS = ("127.0.0.1", "127.0.0.2")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """Has the name service answer with some addresses, or with none."""

    def answer_with(hosts: Sequence[str]) -> None:
        def find(name: str, port: int, **_: object) -> list[tuple]:
            if not hosts:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, port, 0, 0))
                if ":" in host
                else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
                for host in hosts
            ]

        monkeypatch.setattr(socket, "getaddrinfo", find)

    return answer_with


def test_a_name_with_several_addresses_stands_for_as_many_servers(named):
    named(["10.0.0.2", "10.0.0.1", "10.0.0.2"])
    assert hosts_behind("http://models:8501") == ["10.0.0.1", "10.0.0.2"]
    assert hosts_behind("http://models") == ["10.0.0.1", "10.0.0.2"]


def test_servers_with_an_address_of_each_family_are_asked_once(named):
    named(["fd00::1", "10.0.0.1"])
    assert hosts_behind("http://model-1:8501") == []
    named(["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"])
    assert len(hosts_behind("http://models:8501")) == 2
    named(["fd00::1", "fd00::2"])
    assert hosts_behind("http://models:8501") == ["fd00::1", "fd00::2"]


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("http://model-1:8501", ["10.0.0.1"]),
        ("http://nowhere:8501", []),
        ("https://models.example", ["10.0.0.1", "10.0.0.2"]),
        ("http://models:99999", ["10.0.0.1", "10.0.0.2"]),
    ],
)
def test_other_addresses_are_asked_as_they_are(named, address, hosts):
    named(hosts)
    assert hosts_behind(address) == []


class Heard(http.server.ThreadingHTTPServer):
    """A model server, or a proxy, that notes who was asked for what."""

    def __init__(self, host: str, port: int = 0):
        super().__init__((host, port), Handler)
        self.requests: list[tuple[str, str]] = []
        self.version = 1


class Handler(http.server.BaseHTTPRequestHandler):
    server: Heard

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Host"]))
        answer = {"model_spec": {"version": str(self.server.version)}}
        if not self.path.endswith("/metadata"):
            version = {"version": str(self.server.version), "state": "AVAILABLE"}
            answer = {"model_version_status": [version]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: Heard) -> Iterator[Heard]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Heard]]:
    """Two servers behind the name `models.test`, of which the second has version 2."""
    resolve = socket.getaddrinfo

    def name_service(host: str, *arguments: object, **named: object) -> list:
        hosts = HOSTS if host == "models.test" else [host]
        return [found for each in hosts for found in resolve(each, *arguments, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", name_service)
    with (
        serving(Heard(HOSTS[0])) as first,
        serving(Heard(HOSTS[1], first.server_port)) as second,
    ):
        second.version = 2
        yield [first, second]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """What the environment names as the proxy of everything that no_proxy does not name."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving(Heard(HOSTS[0])) as made:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://{HOSTS[0]}:{made.server_port}")
        yield made


@pytest.fixture
def address(servers: list[Heard]) -> str:
    return f"http://models.test:{servers[0].server_port}"


def test_each_server_behind_a_name_is_asked_by_that_name(servers, address):
    states = Servers([address], "flowers").ask(["stable"])
    assert [(state.host, state.versions, state.labels) for state in states] == [
        (HOSTS[0], {1: "AVAILABLE"}, {"stable": 1}),
        (HOSTS[1], {2: "AVAILABLE"}, {"stable": 2}),
    ]
    name = address.removeprefix("http://")
    for server in servers:
        assert server.requests == [
            ("/v1/models/flowers", name),
            ("/v1/models/flowers/labels/stable/metadata", name),
        ]


def test_a_prefix_of_the_address_is_kept(servers, address):
    Servers([f"{address}/eu/"], "flowers").ask()
    for server in servers:
        assert [path for path, _ in server.requests] == ["/eu/v1/models/flowers"]


def test_a_server_is_told_by_name_and_address(servers, address):
    with pytest.raises(UserError) as error:
        Servers([address], "flowers").wait(lambda state: 2 in state.available, "version 2", 0)
    said = str(error.value)
    assert f"{address} ({HOSTS[0]}) has versions 1 AVAILABLE." in said
    assert HOSTS[1] not in said


def test_a_name_that_goes_past_the_proxy_takes_its_servers_along(
    servers, proxy, address, monkeypatch
):
    monkeypatch.setenv("no_proxy", "models.test")
    assert all(state.available for state in Servers([address], "flowers").ask())
    assert proxy.requests == []
    assert [len(server.requests) for server in servers] == [1, 1]


def test_an_address_may_go_past_the_proxy_though_its_name_does_not(
    servers, proxy, address, monkeypatch
):
    monkeypatch.setenv("no_proxy", "127.0.0.2/32")
    Servers([address], "flowers").ask()
    assert [path for path, _ in proxy.requests] == [
        f"http://{HOSTS[0]}:{servers[0].server_port}/v1/models/flowers"
    ]
    assert [len(server.requests) for server in servers] == [0, 1]


def test_without_an_exception_the_proxy_is_asked_for_each_server(
    servers, proxy, address, monkeypatch
):
    monkeypatch.setenv("no_proxy", "other.test")
    Servers([address], "flowers").ask()
    port = servers[0].server_port
    assert [path for path, _ in proxy.requests] == [
        f"http://{host}:{port}/v1/models/flowers" for host in HOSTS
    ]
    assert [server.requests for server in servers] == [[], []]
