"""The interface as OpenAPI 3.1, made from the types that requests and answers are made from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from graftline.serving.gateway.answer import Answer
from graftline.serving.gateway.api_keys import HEADER
from graftline.serving.gateway.config import GatewayConfig
from graftline.serving.gateway.image_input import FIELD, ImageRequest
from graftline.serving.gateway.refusals import CONTENT_TYPE, Problem

# How many classes an answer has, unless another number is asked for, and at most.
TOP = 10
MOST = 1000
# Eight grey pixels on each side, as PNG.
_EXAMPLE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mNsYIAAJgaKGAAmCACQtTEKkQAAAABJRU5ErkJg"
    "gg=="
)
_REFUSALS = {
    "400": "The request is not as it should be.",
    "401": "No key or token, or one that is not taken.",
    "408": "The body did not arrive in time.",
    "413": "The image has too many bytes.",
    "415": "No image, or of a format that is not decoded.",
    "422": "An image that cannot be used: too many pixels, too small, damaged.",
    "429": "Too many requests of this caller; Retry-After says when to come back.",
    "500": "A mistake of the gateway.",
    "502": "The model server does not answer as it should.",
    "503": "Too much to do, or no model; Retry-After says when to come back.",
    "504": "The model server did not answer in time.",
}


def document(config: GatewayConfig, model: str) -> bytes:
    """The document, as JSON.

    Args:
        config: who is let in, and how large images may be.
        model: what is served.
    """
    _, schemas = msgspec.json.schema_components(
        [Answer, Problem, ImageRequest], ref_template="#/components/schemas/{name}"
    )
    ways: dict[str, Any] = {}
    if config.api_keys:
        ways["key"] = {"type": "apiKey", "in": "header", "name": HEADER}
    if config.jwt.used:
        ways["token"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    security: list[dict[str, list[str]]] = [{name: []} for name in ways]
    if config.lets_in_anyone:
        security.append({})
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": f"Graftline gateway: {model}",
                "version": _version(),
                "description": "An image in, classes with their probabilities out.",
            },
            "paths": {
                "/v1/classify": {"post": _classify(config)},
                "/healthz": {"get": _status("The process lives.", "Is it alive?")},
                "/readyz": {"get": _status("Requests are answered.", "Is it ready?", "Not now.")},
            },
            "components": {"schemas": schemas, "securitySchemes": ways},
            "security": security,
        }
    )


def _classify(config: GatewayConfig) -> dict[str, Any]:
    encoded = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {"type": "object", "properties": {FIELD: encoded}, "required": [FIELD]}
    return {
        "operationId": "classify",
        "summary": "The classes of an image",
        "parameters": [
            {
                "name": "top",
                "in": "query",
                "description": "How many classes, the likeliest first.",
                "schema": {"type": "integer", "minimum": 1, "maximum": MOST, "default": TOP},
            }
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {config.max_bytes:,} bytes and {config.max_pixels:,} pixels.",
            "content": {
                "image/*": {"schema": {}},
                "application/octet-stream": {"schema": {}},
                "multipart/form-data": {"schema": form},
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/ImageRequest"},
                    "example": {FIELD: _EXAMPLE},
                },
            },
        },
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}
                },
            },
            **{code: _refusal(said) for code, said in _REFUSALS.items()},
        },
    }


def _refusal(description: str) -> dict[str, Any]:
    content = {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": description, "content": content}


def _status(good: str, summary: str, bad: str = "") -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"status": {"type": "string"}},
        "required": ["status"],
    }
    content = {"application/json": {"schema": schema}}
    responses = {"200": {"description": good, "content": content}}
    if bad:
        responses["503"] = {"description": bad, "content": content}
    return {"summary": summary, "security": [], "responses": responses}


def _version() -> str:
    try:
        return version("graftline")
    except PackageNotFoundError:
        return "0"
