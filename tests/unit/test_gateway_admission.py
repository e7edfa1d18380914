"""How many requests are let in: for each caller, and in all; and how callers are told apart."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from graftline.serving.gateway.admission import Admission, Rate
from graftline.serving.gateway.api_keys import new_key
from graftline.serving.gateway.callers import Callers
from graftline.serving.gateway.config import GatewayConfig, JwtConfig
from graftline.serving.gateway.metrics import Metrics
from graftline.serving.gateway.refusals import Refusal


def admission(**settings: object) -> Admission:
    return Admission(GatewayConfig(**settings), Metrics())


def identified(callers: Callers, address: str = "192.0.2.1", **headers: str) -> str:
    named = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return asyncio.run(callers.identify(named, address))


def test_each_caller_has_a_rate_of_their_own():
    made = admission(rate_limit="2/hour")
    for caller in ("a", "b"):
        made.count(caller)
        made.count(caller)
    with pytest.raises(Refusal) as caught:
        made.count("a")
    assert (caught.value.status, caught.value.reason) == (429, "rate-limit")
    assert 1 <= int(caught.value.headers["Retry-After"]) <= 3600


def test_a_bucket_fills_again_evenly():
    rate = Rate("60/minute")
    assert [rate.take("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rate.take("a", 0.0) == pytest.approx(1)
    assert rate.take("a", 0.5) == pytest.approx(0.5)
    assert rate.take("a", 1.0) == 0
    assert rate.take("a", 1.0) == pytest.approx(1)
    assert [rate.take("a", 61.0) for _ in range(60)] == [0.0] * 60
    assert rate.take("a", 61.0) > 0


@given(st.lists(st.floats(0, 20), max_size=60), st.integers(1, 9))
def test_no_more_than_a_bucket_and_what_has_filled_since_is_ever_let_in(gaps, count):
    rate = Rate(f"{count}/second")
    let_in: list[float] = []
    now = 0.0
    for gap in gaps:
        now += gap / 10
        if not rate.take("a", now):
            let_in.append(now)
    for first, begin in enumerate(let_in):
        for last, end in enumerate(let_in[first:], first):
            assert last - first + 1 <= count + (end - begin) * count + 1e-3


def test_callers_who_do_not_come_back_are_forgotten():
    rate = Rate("1/minute")
    for number in range(100_000):
        rate.take(f"caller-{number}", number / 100)
    # A minute of them, a hundred in each second.
    assert rate.remembered <= 6100


def test_without_a_rate_there_is_no_limit():
    made = admission(rate_limit="")
    assert [made.count("a") for _ in range(10_000)] == [None] * 10_000  # refuses by raising


def test_there_are_so_many_places_and_no_queue():
    made = admission(max_in_flight=2, max_in_flight_per_caller=2)
    with made.slot("a"), made.slot("b"):
        with pytest.raises(Refusal) as caught, made.slot("c"):
            pass
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    with made.slot("c"):
        assert made.in_flight == 1


def test_one_caller_does_not_take_all_places():
    made = admission(max_in_flight=4, max_in_flight_per_caller=2)
    with made.slot("a"), made.slot("a"):
        with pytest.raises(Refusal) as caught, made.slot("a"):
            pass
        assert caught.value.status == 429
        with made.slot("b"):
            assert made.in_flight == 3


def test_a_place_is_given_back_when_the_request_fails():
    made = admission(max_in_flight=1)
    for _ in range(3):
        with contextlib.suppress(RuntimeError), made.slot("a"):
            raise RuntimeError
    assert made.in_flight == 0


def test_callers_without_a_name_are_told_apart_by_address_or_network():
    callers = Callers(GatewayConfig(anonymous=True))
    assert identified(callers) == "address:192.0.2.1"
    assert identified(callers, "::ffff:192.0.2.1") == "address:192.0.2.1"
    assert identified(callers, "2001:db8::1") == identified(callers, "2001:db8::ffff:2")
    assert identified(callers, "2001:db8::1") != identified(callers, "2001:db8:0:1::1")


def test_who_names_nothing_is_told_what_to_name(tmp_path: Path):
    (tmp_path / "keys").write_text(new_key("shop")[1])
    (tmp_path / "secret").write_text("x" * 32)
    jwt = JwtConfig(secret_file=str(tmp_path / "secret"), audience="a")
    callers = Callers(GatewayConfig(api_keys=str(tmp_path / "keys"), jwt=jwt))
    with pytest.raises(Refusal) as caught:
        identified(callers)
    assert (caught.value.status, caught.value.reason) == (401, "no-credentials")
    challenge = 'Bearer realm="graftline", ApiKey realm="graftline"'
    assert caught.value.headers["WWW-Authenticate"] == challenge


def test_a_wrong_key_is_refused_also_where_anyone_is_let_in(tmp_path: Path):
    key, line = new_key("shop")
    (tmp_path / "keys").write_text(line)
    callers = Callers(GatewayConfig(api_keys=str(tmp_path / "keys"), anonymous=True))
    assert identified(callers, X_API_Key=key) == "key:shop"
    assert identified(callers) == "address:192.0.2.1"
    with pytest.raises(Refusal):
        identified(callers, X_API_Key="wrong")


@pytest.mark.parametrize("header", ["Basic c2hvcDp4", "Bearer", "Bearer ", "", "Bearer a b"])
def test_a_header_that_holds_no_token_is_refused(tmp_path: Path, header: str):
    (tmp_path / "secret").write_text("x" * 32)
    jwt = JwtConfig(secret_file=str(tmp_path / "secret"), audience="a")
    with pytest.raises(Refusal) as caught:
        identified(Callers(GatewayConfig(jwt=jwt)), Authorization=header)
    assert (caught.value.status, caught.value.reason) == (401, "bad-token")


def test_a_key_and_a_token_together_are_refused(tmp_path: Path):
    key, line = new_key("shop")
    (tmp_path / "keys").write_text(line)
    (tmp_path / "secret").write_text("x" * 32)
    jwt = JwtConfig(secret_file=str(tmp_path / "secret"), audience="a")
    callers = Callers(GatewayConfig(api_keys=str(tmp_path / "keys"), jwt=jwt))
    with pytest.raises(Refusal, match="one key or one token"):
        identified(callers, X_API_Key=key, Authorization="Bearer x")
