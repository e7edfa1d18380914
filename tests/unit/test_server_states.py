"""Which servers an address stands for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import pytest

from graftline.serving.server_states import servers_behind


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
    assert servers_behind("http://models:8501") == ["http://10.0.0.1:8501", "http://10.0.0.2:8501"]
    assert servers_behind("http://models") == ["http://10.0.0.1", "http://10.0.0.2"]


def test_a_prefix_of_the_address_is_kept(named):
    named(["10.0.0.1", "10.0.0.2"])
    assert servers_behind("http://models:8501/eu") == [
        "http://10.0.0.1:8501/eu",
        "http://10.0.0.2:8501/eu",
    ]


def test_servers_with_an_address_of_each_family_are_asked_once(named):
    named(["fd00::1", "10.0.0.1"])
    assert servers_behind("http://model-1:8501") == ["http://model-1:8501"]
    named(["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"])
    assert len(servers_behind("http://models:8501")) == 2
    named(["fd00::1", "fd00::2"])
    assert servers_behind("http://models:8501") == [
        "http://[fd00::1]:8501",
        "http://[fd00::2]:8501",
    ]


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
    assert servers_behind(address) == [address]
