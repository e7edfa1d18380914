"""The server's command line: TensorFlow Serving's flags, and what it refuses."""

import msgspec
import pytest

from graftline.serving.errors import UserError
from graftline.serving.server import flags
from graftline.serving.server.__main__ import main
from graftline.serving.server.flags import Flags, parse

# All flags of the real server: tensorflow_serving/model_servers/main.cc.
REAL = set(
    """
port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
batching_parameters_file enable_per_model_batching_parameters model_config_file
model_config_file_poll_wait_seconds model_name model_base_path num_load_threads num_unload_threads
max_num_load_retries load_retry_interval_micros file_system_poll_wait_seconds
flush_filesystem_caches tensorflow_session_parallelism tensorflow_session_config_file
tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism use_alts_credentials
ssl_config_file platform_config_file per_process_gpu_memory_fraction saved_model_tags
grpc_channel_arguments grpc_max_threads enable_model_warmup num_request_iterations_for_warmup
monitoring_config_file remove_unused_fields_from_bundle_metagraph prefer_tflite_model
num_tflite_pools num_tflite_interpreters_per_pool enable_signature_method_name_check
xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler
thread_pool_factory_config_file mixed_precision skip_initialize_tpu
enable_grpc_healthcheck_service enable_serialization_as_tensor_content
""".split()  # noqa: SIM905
)


def test_every_flag_of_the_real_server_is_known():
    known = {field.name for field in msgspec.structs.fields(Flags)}
    assert known >= REAL
    assert all(f"--{name}=" in flags.usage() for name in known)


def test_a_value_follows_an_equals_sign_or_stands_alone():
    assert parse(["--model_base_path=/m", "--port", "9000"]).port == 9000
    assert parse(["--model_base_path", "/m", "--rest_api_port=9001"]).rest_api_port == 9001


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--enable_profiler", True),
        ("--enable_profiler=true", True),
        ("--enable_profiler=1", True),
        ("--enable_profiler=false", False),
        ("--noenable_profiler", False),
    ],
)
def test_a_boolean_flag_is_written_in_several_ways(argument, value):
    assert parse(["--model_base_path=/m", argument]).enable_profiler is value


def test_unset_flags_have_the_real_servers_defaults():
    default = parse(["--model_base_path=/m"])
    assert (default.port, default.rest_api_port, default.model_name) == (8500, 0, "default")
    assert (default.max_num_load_retries, default.load_retry_interval_micros) == (5, 60_000_000)
    assert default.rest_api_timeout_in_ms == 30_000
    assert default.enable_model_warmup and default.enable_profiler
    assert not default.enable_batching


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prot=1"], "no flag --prot. Was --port meant"),
        (["--port=high"], "--port=high"),
        (["--port=99999"], "--port=99999"),
        (["--enable_batching=perhaps"], "either true or false"),
        (["--port"], "needs a value"),
        (["models"], "'models' is not a flag"),
        ([], "nothing to serve"),
        (["--model_base_path=/m", "--port=0"], "listen nowhere"),
        (["--model_base_path=/m", "--rest_api_port=8500"], "a port each"),
        (["--model_base_path=/m", "--batching_parameters_file=f"], "without --enable_batching"),
        (["--model_base_path=/m", "--use_alts_credentials"], "not supported"),
        (["--model_base_path=/m", "--platform_config_file=f"], "not supported"),
        (
            [
                "--model_base_path=/m",
                "--tensorflow_session_parallelism=1",
                "--tensorflow_intra_op_parallelism=1",
                "--tensorflow_inter_op_parallelism=1",
            ],
            "not all three",
        ),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_paragraph(arguments, said):
    with pytest.raises(UserError) as refusal:
        parse(arguments)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_wrong_command_line_ends_with_code_2(capsys):
    assert main(["--prot=1"]) == 2
    assert "Was --port meant?" in capsys.readouterr().err


def test_flags_without_a_meaning_here_are_named_when_set():
    assert flags.unused(parse(["--model_base_path=/m"])) == []
    named = flags.unused(parse(["--model_base_path=/m", "--xla_cpu_compilation_enabled"]))
    assert named == ["xla_cpu_compilation_enabled"]
