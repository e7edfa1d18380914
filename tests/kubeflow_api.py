"""The API of Kubeflow Pipelines as the project publishes it with its client, `kfp-server-api`.

Paths, verbs, parameters, and the fields and types of every message.
"""

from __future__ import annotations

import datetime
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import kfp_server_api.api
import kfp_server_api.models


class Operation(NamedTuple):
    """One request that the definition knows."""

    name: str
    verb: str
    path: re.Pattern[str]
    query: frozenset[str]
    body: str
    files: frozenset[str]
    answer: str


def operations() -> list[Operation]:
    """All requests of the definition; paths without variables first."""
    found = []
    for module in pkgutil.iter_modules(kfp_server_api.api.__path__):
        namespace = importlib.import_module(f"kfp_server_api.api.{module.name}")
        for _, kind in inspect.getmembers(namespace, inspect.isclass):
            for name, method in inspect.getmembers(kind, inspect.isfunction):
                if name.endswith("_with_http_info") and kind.__module__ == namespace.__name__:
                    found.append(_operation(name, inspect.getsource(method)))
    return sorted(found, key=lambda operation: operation.path.pattern.count("["))


def _operation(name: str, source: str) -> Operation:
    called = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", source)
    answer = re.search(r"response_type='([^']+)'", source)
    assert called and answer
    pattern = re.sub(r"\\{[^}]+\\}", "([^/:]+)", re.escape(called[1]))
    body = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
    kind = re.search(rf":type {body[1]}: (\w+)", source) if body else None
    return Operation(
        name=name.removesuffix("_with_http_info"),
        verb=called[2],
        path=re.compile(pattern),
        query=frozenset(re.findall(r"query_params\.append\(\('([\w.]+)'", source)),
        body=kind[1] if kind else "",
        files=frozenset(re.findall(r"local_var_files\['(\w+)'\]", source)),
        answer=answer[1],
    )


def problems(kind: str, value: Any, at: str = "") -> Iterator[str]:
    """What of a message the definition does not allow."""
    if kind == "object":
        return
    if kind.startswith("list["):
        if not isinstance(value, list):
            yield f"{at}: {value!r} is no list"
            return
        for number, item in enumerate(value):
            yield from problems(kind[5:-1], item, f"{at}[{number}]")
    elif kind.startswith("dict("):
        if not isinstance(value, dict):
            yield f"{at}: {value!r} is no mapping"
            return
        for key, item in value.items():
            yield from problems(kind[len("dict(str, ") : -1], item, f"{at}.{key}")
    elif kind in ("str", "int", "float", "bool"):
        wanted = {"str": str, "int": int, "float": (int, float), "bool": bool}[kind]
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
            yield f"{at}: {value!r} is no {kind}"
    elif kind == "datetime":
        try:
            datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        except ValueError:
            yield f"{at}: {value!r} is no time"
    else:
        model = getattr(kfp_server_api.models, kind)
        if not model.openapi_types:
            if value not in model.allowable_values:
                yield f"{at}: {value!r} is none of {model.allowable_values}"
        elif not isinstance(value, dict):
            yield f"{at}: {value!r} is no {kind}"
        else:
            types = {model.attribute_map[name]: one for name, one in model.openapi_types.items()}
            for key, item in value.items():
                if key not in types:
                    yield f"{at}.{key}: {kind} has no such field"
                else:
                    yield from problems(types[key], item, f"{at}.{key}")
