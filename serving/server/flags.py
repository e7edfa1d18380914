"""The command line: TensorFlow Serving's flags, so that one line starts either server.

A flag is `--name=value` or `--name value`; a boolean one `--name`, `--noname`, `--name=false`. What
the real server takes and this one does not act on is said in the log when it is set; what would be
unsafe to pass over is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from graftline.serving.errors import UserError

_TRUE = ("true", "1", "t", "yes", "y")
_FALSE = ("false", "0", "f", "no", "n")
INT32_MAX = (1 << 31) - 1


def _flag(help: str, group: str = "", **bounds: Any) -> Meta:
    return Meta(description=help, extra={"group": group}, **bounds)


_UNUSED = "has no meaning here"
_REFUSED = "refused"
_OWN = "Graftline's own"


def _four_per_cpu() -> int:
    return 4 * len(os.sched_getaffinity(0))


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """One start of the server; names, meanings and defaults are TensorFlow Serving's."""

    port: Annotated[int, _flag("gRPC port; 0 for none", ge=0, le=65535)] = 8500
    grpc_socket_path: Annotated[str, _flag("Unix socket for gRPC, besides the port")] = ""
    grpc_channel_arguments: Annotated[str, _flag("arguments of the gRPC server, k=v,k=v")] = ""
    grpc_max_threads: Annotated[int, _flag("gRPC requests worked on at once", ge=1)] = (
        msgspec.field(default_factory=_four_per_cpu)
    )
    rest_api_port: Annotated[int, _flag("REST port; 0 for none", ge=0, le=65535)] = 0
    rest_api_num_threads: Annotated[int, _flag("REST requests worked on at once", ge=1)] = (
        msgspec.field(default_factory=_four_per_cpu)
    )
    rest_api_timeout_in_ms: Annotated[int, _flag("after which a REST request ends", ge=0)] = 30_000
    rest_api_enable_cors_support: Annotated[bool, _flag("answer browsers of other origins")] = False
    ssl_config_file: Annotated[str, _flag("SSLConfig: TLS for gRPC")] = ""
    enable_grpc_healthcheck_service: Annotated[bool, _flag("grpc.health.v1")] = False
    enable_profiler: Annotated[bool, _flag("TensorBoard may capture a profile")] = True
    monitoring_config_file: Annotated[str, _flag("MonitoringConfig: Prometheus")] = ""

    model_name: Annotated[str, _flag("name of the one model", min_length=1)] = "default"
    model_base_path: Annotated[str, _flag("folder with its versions")] = ""
    model_config_file: Annotated[str, _flag("ModelServerConfig: several models")] = ""
    model_config_file_poll_wait_seconds: Annotated[int, _flag("0: read it once")] = 0
    file_system_poll_wait_seconds: Annotated[int, _flag("between two looks for versions")] = 1
    allow_version_labels_for_unavailable_models: Annotated[
        bool, _flag("a new label may name a version that is not loaded yet")
    ] = False
    saved_model_tags: Annotated[str, _flag("which graph of a SavedModel", min_length=1)] = "serve"
    prefer_tflite_model: Annotated[bool, _flag("a version's model.tflite, where there is one")] = (
        False
    )
    num_tflite_interpreters_per_pool: Annotated[int, _flag("per TFLite model", ge=0)] = 0
    enable_signature_method_name_check: Annotated[
        bool, _flag("classify and regress only signatures exported for it")
    ] = False
    enable_serialization_as_tensor_content: Annotated[
        bool, _flag("answers as tensor_content instead of *_val")
    ] = False

    num_load_threads: Annotated[int, _flag("versions loaded at once; 0: one", ge=0)] = 0
    num_unload_threads: Annotated[int, _flag("versions unloaded at once; 0: one", ge=0)] = 0
    max_num_load_retries: Annotated[int, _flag("after the first failure", ge=0)] = 5
    load_retry_interval_micros: Annotated[int, _flag("between two tries")] = 60_000_000
    enable_model_warmup: Annotated[bool, _flag("replay assets.extra on load")] = True
    num_request_iterations_for_warmup: Annotated[int, _flag("how often each is replayed")] = 0

    enable_batching: Annotated[bool, _flag("run requests of several clients together")] = False
    batching_parameters_file: Annotated[str, _flag("BatchingParameters")] = ""
    enable_per_model_batching_parameters: Annotated[
        bool, _flag("a version's batching_params.pbtxt")
    ] = False
    tensorflow_session_parallelism: Annotated[int, _flag("threads of a session", ge=0)] = 0
    tensorflow_intra_op_parallelism: Annotated[int, _flag("threads of one op", ge=0)] = 0
    tensorflow_inter_op_parallelism: Annotated[int, _flag("ops at once", ge=0)] = 0
    tensorflow_session_config_file: Annotated[str, _flag("ConfigProto")] = ""
    per_process_gpu_memory_fraction: Annotated[float, _flag("0: TensorFlow's", ge=0, le=1)] = 0.0
    mixed_precision: Annotated[str, _flag("bfloat16 or nothing", pattern="^(bfloat16)?$")] = ""

    flush_filesystem_caches: Annotated[bool, _flag("", _UNUSED)] = True
    num_tflite_pools: Annotated[int, _flag("", _UNUSED)] = 0
    remove_unused_fields_from_bundle_metagraph: Annotated[bool, _flag("", _UNUSED)] = True
    skip_initialize_tpu: Annotated[bool, _flag("", _UNUSED)] = False
    xla_cpu_compilation_enabled: Annotated[bool, _flag("", _UNUSED)] = False
    xla_gpu_compilation_enabled: Annotated[bool, _flag("", _UNUSED)] = False
    platform_config_file: Annotated[str, _flag("", _REFUSED)] = ""
    thread_pool_factory_config_file: Annotated[str, _flag("", _REFUSED)] = ""
    use_alts_credentials: Annotated[bool, _flag("", _REFUSED)] = False

    bind_address: Annotated[str, _flag("default: all interfaces, as the real one", _OWN)] = ""
    max_request_bytes: Annotated[
        int, _flag("longest request, gRPC or REST", _OWN, ge=1, le=INT32_MAX)
    ] = 64 << 20
    request_read_timeout_seconds: Annotated[
        float, _flag("in which a request must have arrived", _OWN, gt=0)
    ] = 60.0
    allowed_model_roots: Annotated[
        str, _flag("folders, comma-separated, that the reload call may name", _OWN)
    ] = ""
    shutdown_grace_seconds: Annotated[
        float, _flag("in which begun requests may finish", _OWN, ge=0)
    ] = 30.0


def parse(arguments: Sequence[str]) -> Flags:
    """Reads the command line, program name excluded.

    Raises:
        UserError: an unknown flag, a value that does not fit, nothing to serve.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(Flags)}
    given: dict[str, str] = {}
    remaining = list(arguments)
    while remaining:
        name, value = _take(remaining, types)
        given[name] = value
    flags = _convert(given)
    _refuse(flags)
    return flags


def unused(flags: Flags) -> list[str]:
    """The flags that were set and on which this server does not act."""
    return [
        field.name
        for field in msgspec.structs.fields(Flags)
        if _group(field.type) == _UNUSED and getattr(flags, field.name) != field.default
    ]


def usage() -> str:
    """All flags with their defaults, one a line."""
    groups: dict[str, list[str]] = {}
    for field in msgspec.structs.fields(Flags):
        known = field.default is not msgspec.NODEFAULT
        shown = msgspec.json.encode(field.default).decode().strip('"') if known else "4 x CPUs"
        meaning = _meta(field.type).description or ""
        line = f"  --{field.name}={shown}".ljust(52) + f"  {meaning}"
        groups.setdefault(_group(field.type), []).append(line.rstrip())
    titles = {
        "": "TensorFlow Serving's flags:",
        _UNUSED: "Taken for the real server's sake, without an effect here:",
        _REFUSED: "The real server's, not supported here:",
        _OWN: "Graftline's own:",
    }
    return "\n\n".join("\n".join([titles[group], *groups[group]]) for group in titles)


def _take(remaining: list[str], types: Mapping[str, Any]) -> tuple[str, str]:
    """Takes one flag, and its value where that is an argument of its own."""
    argument = remaining.pop(0)
    if not argument.startswith("-") or argument in ("-", "--"):
        raise UserError(
            f"{argument!r} is not a flag. The server takes TensorFlow Serving's flags, "
            "--name=value; --help lists them."
        )
    name, separator, value = argument.lstrip("-").partition("=")
    if name not in types and not separator and _is_boolean(types.get(name.removeprefix("no"))):
        return name.removeprefix("no"), "false"
    if name not in types:
        close = _closest(name, types)
        raise UserError(
            f"There is no flag --{name}.{close} The server takes TensorFlow Serving's flags; "
            "--help lists them."
        )
    if separator:
        return name, value
    if _is_boolean(types[name]):
        return name, "true"
    if not remaining:
        raise UserError(f"--{name} needs a value: --{name}=VALUE.")
    return name, remaining.pop(0)


def _closest(name: str, types: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name, types, n=1)
    return f" Was --{close[0]} meant?" if close else ""


def _convert(given: Mapping[str, str]) -> Flags:
    types = {field.name: field.type for field in msgspec.structs.fields(Flags)}
    values: dict[str, object] = {}
    for name, text in given.items():
        if _is_boolean(types[name]):
            if text.lower() not in _TRUE + _FALSE:
                raise UserError(f"--{name} is either true or false, not {text!r}.")
            values[name] = text.lower() in _TRUE
            continue
        try:
            values[name] = msgspec.convert(text, types[name], strict=False)
        except msgspec.ValidationError as error:
            raise UserError(f"--{name}={text}: {error}.") from None
    return Flags(**values)  # type: ignore[arg-type]


def _refuse(flags: Flags) -> None:
    """Combinations that the real server refuses, too, and what this one does not offer."""
    for field in msgspec.structs.fields(Flags):
        if _group(field.type) == _REFUSED and getattr(flags, field.name) != field.default:
            raise UserError(
                f"--{field.name} is not supported by the embedded server. Leave it away, or start "
                "the real TensorFlow Serving."
            )
    if not flags.model_base_path and not flags.model_config_file:
        raise UserError(
            "There is nothing to serve. Name a folder with versions, --model_base_path=/models/m, "
            "or a file with several models, --model_config_file=models.config."
        )
    if not flags.port and not flags.rest_api_port and not flags.grpc_socket_path:
        raise UserError(
            "The server would listen nowhere: --port, --rest_api_port and --grpc_socket_path are "
            "all off. Give one of them."
        )
    if flags.port and flags.port == flags.rest_api_port:
        raise UserError(
            f"--port and --rest_api_port are both {flags.port}. gRPC and REST need a port each."
        )
    if flags.batching_parameters_file and not flags.enable_batching:
        raise UserError("--batching_parameters_file is set without --enable_batching. Set both.")
    parallelism = (
        flags.tensorflow_session_parallelism,
        flags.tensorflow_intra_op_parallelism,
        flags.tensorflow_inter_op_parallelism,
    )
    if all(parallelism):
        raise UserError(
            "Set either --tensorflow_session_parallelism or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism, not all three."
        )


def _meta(annotated: Any) -> Meta:
    found: Meta = annotated.__metadata__[0]
    return found


def _group(annotated: Any) -> str:
    extra = _meta(annotated).extra or {}
    group: str = extra["group"]
    return group


def _is_boolean(annotated: Any) -> bool:
    return getattr(annotated, "__origin__", None) is bool
