"""JSON as rapidjson reads it, and what the real server's messages say of it.

Anything after the first value is ignored, NaN and Infinity are numbers, the first of two equal keys
counts, bytes need not be UTF-8 (tensorflow_serving/util/json_tensor.cc).
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
from typing import Any

import numpy as np

from graftline.serving.server.status import invalid

_WHITESPACE = re.compile(r"[ \t\n\r]*")
# Strings, too, for what looks like a number in one is none.
_NUMBER_OR_STRING = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"|(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)', re.DOTALL
)
_EXPONENT = re.compile(rb"\+?[0-9]{3}")
_BASE64_SPACE = re.compile(r"\s+", re.ASCII)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object at the beginning of a body.

    Raises:
        Failure: there is none.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    # Bytes that are no UTF-8 go through unchanged: see `to_bytes`.
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    start = _end_of(_WHITESPACE, text)
    if start == len(text):
        raise invalid("JSON Parse error: The document is empty. at offset: " + str(start))
    try:
        document, end = _decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise invalid(
            f"JSON Parse error: {_said_of(error)} at offset: {_offset(text, error.pos)}"
        ) from None
    except RecursionError:
        raise invalid("JSON Parse error: The document is nested too deeply.") from None
    except ValueError:  # an integer of thousands of digits
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if _may_overflow(body):
        _refuse_overflow(text, start, end)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {shown(document)} Is not object")
    return document


def kind_of(value: Any) -> str:
    """The type of a JSON value, as the messages call it."""
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def shown(value: Any) -> str:
    """A JSON value as the messages show it: rapidjson's pretty form, four spaces."""
    text = json.dumps(value, indent=4, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def is_object(value: Any) -> bool:
    """Whether a JSON value is an object, and not one that stands for bytes."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Any) -> bool:
    """Whether a JSON value stands for bytes: `{"b64": "…"}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decoded(value: Any) -> bytes:
    """The bytes of a `{"b64": …}` object; padding is optional, whitespace ignored."""
    if not is_base64(value):
        raise invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    text: str = value["b64"]
    with contextlib.suppress(ValueError):
        return base64.b64decode(text, validate=True)
    text = _BASE64_SPACE.sub("", text).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def to_bytes(text: str) -> bytes:
    """The bytes of a JSON string as they came."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def to_text(name: str) -> str:
    """A name as protobuf takes it.

    Raises:
        Failure: it is no UTF-8.
    """
    try:
        return to_bytes(name).decode()
    except UnicodeDecodeError:
        raise invalid(f"{shown(name)} is no UTF-8") from None


def _first_of_equal_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else dict(reversed(pairs))


_decoder = json.JSONDecoder(object_pairs_hook=_first_of_equal_keys)


def _end_of(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match else 0


# What rapidjson says where Python says the key.
_SAID = {
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\escape: ": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}


def _said_of(error: json.JSONDecodeError) -> str:
    if error.msg == "Expecting ',' delimiter":
        opened = error.doc[: error.pos]
        in_object = opened.rfind("{") > opened.rfind("[")
        kind = "} after an object member." if in_object else "] after an array element."
        return f"Missing a comma or {kind}"
    return _SAID.get(error.msg, "Invalid value.")


def _may_overflow(body: bytes) -> bool:
    """Whether there is an exponent of three digits, or a hundred digits in a row, somewhere.

    In vectors, for most of a body is base64, in which looking for a pattern takes longer than all
    the rest of reading it.
    """
    codes = np.frombuffer(body, np.uint8)
    digits = (codes - np.uint8(ord("0"))) < 10
    # A run of two hundred digits holds a whole block of a hundred.
    if digits[: len(digits) // 100 * 100].reshape(-1, 100).all(axis=1).any():
        return True
    (letters,) = np.nonzero(digits[:-1] & ((codes[1:] | 0x20) == ord("e")))
    return any(_EXPONENT.match(body, int(at) + 2) for at in letters)


def _refuse_overflow(text: str, start: int, end: int) -> None:
    """Refuses a number beyond a double's range, as rapidjson does; Python makes it infinite.

    Raises:
        Failure: there is one.
    """
    for token in _NUMBER_OR_STRING.finditer(text, start, end):
        number = token["number"]
        if number is not None and math.isinf(float(number)):
            raise invalid(
                "JSON Parse error: Number too big to be stored in double. at offset: "
                f"{_offset(text, token.start())}"
            )


def _offset(text: str, position: int) -> int:
    return len(text[:position].encode("utf-8", "surrogateescape"))
