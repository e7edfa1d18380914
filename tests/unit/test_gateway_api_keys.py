"""API keys: made, stored as hashes, taken away."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from graftline.serving.errors import UserError
from graftline.serving.gateway.api_keys import ApiKeys, new_key
from graftline.serving.gateway.refusals import Refusal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of keys."""
    return tmp_path / "keys"


def refused(keys: ApiKeys, key: str) -> str:
    with pytest.raises(Refusal) as caught:
        keys.caller(key)
    assert caught.value.status == 401
    return caught.value.reason


def test_a_key_names_its_caller(file: Path):
    (shop, shop_line), (depot, depot_line) = new_key("shop"), new_key("depot")
    file.write_text(f"# who\n\n{shop_line}\n  {depot_line}  \n")
    keys = ApiKeys(file)
    assert (keys.caller(shop), keys.caller(depot)) == ("shop", "depot")


def test_no_two_keys_are_the_same_and_the_file_does_not_hold_them():
    key, line = new_key("shop")
    assert key != new_key("shop")[0]
    assert key not in line
    assert line == f"shop {hashlib.sha256(key.encode()).hexdigest()}"


@pytest.mark.parametrize("presented", ["", "x", "gk_", "\udcff", "ä", "x" * 100_000])
def test_what_is_no_key_is_refused(file: Path, presented: str):
    file.write_text(new_key("shop")[1])
    assert refused(ApiKeys(file), presented) == "bad-key"


def test_neither_a_hash_nor_a_key_with_something_behind_it_lets_anyone_in(file: Path):
    key, line = new_key("shop")
    file.write_text(line)
    keys = ApiKeys(file)
    assert refused(keys, line.split()[1]) == "bad-key"
    assert refused(keys, f"{key}x") == "bad-key"
    padded = "x" * 512
    file.write_text(f"shop {hashlib.sha256(padded.encode()).hexdigest()}")
    assert refused(ApiKeys(file), f"{padded}more") == "bad-key"


def test_a_key_that_is_taken_out_of_the_file_is_not_let_in_any_more(file: Path):
    key, line = new_key("shop")
    file.write_text(line)
    keys = ApiKeys(file)
    file.write_text(new_key("depot")[1])
    keys.look()
    assert refused(keys, key) == "bad-key"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shop plain-key", "Line 1"),
        (f"shop {'0' * 64}\nshop {'1' * 64}", "Line 2 .* stands twice"),
        (f"../shop {'0' * 64}", "Line 1"),
        (b"\xff\xfe", "not text"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_words(file: Path, text: str | bytes, said: str):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=said):
        ApiKeys(file)


def test_a_file_that_becomes_wrong_changes_nothing(file: Path):
    key, line = new_key("shop")
    file.write_text(line)
    keys = ApiKeys(file)
    file.write_text("oops")
    keys.look()
    assert keys.caller(key) == "shop"
    file.unlink()
    keys.look()
    assert keys.caller(key) == "shop"


def test_a_name_that_is_none_gets_no_key():
    for name in ("", "a b", "a\nb", "../a", "x" * 64):
        with pytest.raises(UserError, match="no name for a key"):
            new_key(name)
