"""A real server while versions come and go, from its start to its end."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from model_servers import (
    ModelServer,
    free_port,
    predict_request,
    prediction,
    publish,
    refused,
    serving,
    until,
)

pytestmark = pytest.mark.end_to_end


def test_a_new_version_takes_over_and_the_old_one_ends(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    with serving(tmp_path, f"--model_base_path={base}") as server:
        assert server.predict(0) == [1]
        publish(models, base, 3)
        server.until_states({3: "AVAILABLE", 1: "END"})
        assert server.predict(0) == [3]
        assert server.post("default/versions/1:predict", {"instances": [0]})[0] == 404
        (base / "3").rename(base / "3.withdrawn")
        server.until_states({3: "END", 1: "AVAILABLE"})
        assert server.predict(0) == [1]


def test_no_request_fails_while_versions_come_and_go(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    with serving(tmp_path, f"--model_base_path={base}") as server:
        stub = prediction(server)
        answers: set[float] = set()
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answers.add(stub.Predict(predict_request(0)).outputs["y"].float_val[0])

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        publish(models, base, 2)
        server.until_states({2: "AVAILABLE", 1: "END"})
        (base / "2").rename(base / "2.withdrawn")
        server.until_states({2: "END", 1: "AVAILABLE"})
        stop.set()
        for client in clients:
            client.join()
        # A client whose call failed would have ended early, and said so on its thread.
        assert answers == {1.0, 2.0}
        assert "crashed" not in server.output


def test_an_incomplete_version_is_left_alone_until_it_is_whole(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    (base / "2").mkdir()
    (base / "3" / "variables").mkdir(parents=True)
    with serving(tmp_path, f"--model_base_path={base}") as server:
        assert server.states() == {1: "AVAILABLE"}
        shutil.copy(models / "2" / "saved_model.pb", base / "2" / "saved_model.pb")
        server.until_states({2: "AVAILABLE", 1: "END"})
        assert server.predict(0) == [2]


def test_a_damaged_version_ends_and_the_one_before_stays_in_service(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    with serving(tmp_path, f"--model_base_path={base}") as server:
        (base / "2.tmp").mkdir()
        (base / "2.tmp" / "saved_model.pb").write_bytes(b"damaged")
        (base / "2.tmp").rename(base / "2")
        server.until_states({2: "END", 1: "AVAILABLE"})
        assert server.predict(0) == [1]
        _, answer = server.get("default/versions/2")
        (version,) = answer["model_version_status"]
        assert version["status"]["error_code"] == "INVALID_ARGUMENT"
        assert "Could not load the SavedModel" in version["status"]["error_message"]
        publish(models, base, 3)
        server.until_states({3: "AVAILABLE", 2: "END", 1: "END"})


def test_a_version_deleted_while_in_use_serves_until_the_next_look_and_then_the_one_below(
    models, tmp_path
):
    base = tmp_path / "default"
    publish(models, base, 1, 2)
    with serving(tmp_path, f"--model_base_path={base}") as server:
        assert server.predict(0) == [2]
        shutil.rmtree(base / "2")
        assert server.predict(0) in ([1], [2])
        server.until_states({2: "END", 1: "AVAILABLE"})
        assert server.predict(0) == [1]


def test_a_request_under_way_is_finished_though_its_version_is_deleted(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1, 2)
    with serving(tmp_path, f"--model_base_path={base}") as server:
        pending = prediction(server).Predict.future(predict_request(10, signature="slow"))
        threading.Event().wait(0.2)  # until it is under way
        shutil.rmtree(base / "2")
        assert list(pending.result().outputs["y"].float_val) == [7]
        server.until_states({2: "END", 1: "AVAILABLE"})


def test_a_base_path_that_empties_or_vanishes(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    with serving(tmp_path, f"--model_base_path={base}") as server:
        base.rename(tmp_path / "elsewhere")
        until(lambda: "Could not find base path" in server.output)
        assert server.predict(0) == [1]
        base.mkdir()
        server.until_states({1: "END"})
        assert server.post("default:predict", {"instances": [0]})[0] == 404


def test_an_empty_base_path_is_waited_for_with_closed_ports(models, tmp_path):
    base = tmp_path / "default"
    server = ModelServer(tmp_path, f"--model_base_path={base}")
    try:
        until(lambda: "Could not find base path" in server.output)
        base.mkdir()
        until(lambda: "No versions of servable default found" in server.output)
        assert not server.listens()
        publish(models, base, 2)
        assert server.wait_ready().predict(0) == [2]
    finally:
        server.process.kill()


def test_waiting_for_a_model_ends_with_a_signal(tmp_path):
    server = ModelServer(tmp_path, f"--model_base_path={tmp_path / 'default'}")
    until(lambda: "Could not find base path" in server.output)
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0


def test_a_model_that_cannot_be_loaded_ends_the_start_with_the_real_servers_message(tmp_path):
    base = tmp_path / "default"
    (base / "7").mkdir(parents=True)
    (base / "7" / "saved_model.pb").write_bytes(b"damaged")
    server = ModelServer(tmp_path, f"--model_base_path={base}")
    assert server.exit_code() == 255
    assert (
        "Failed to start server. Error: UNKNOWN: 1 model(s) did not become available: "
        "{{name: default version: 7} due to error: INVALID_ARGUMENT: Could not load"
    ) in server.output


@pytest.mark.parametrize(
    ("flags", "content", "said"),
    [
        (["--monitoring_config_file=FILE"], "prometheus { }", "MonitoringConfig"),
        (["--monitoring_config_file=/nowhere"], "", "Cannot read /nowhere"),
        (
            ["--enable_batching", "--batching_parameters_file=FILE"],
            "max_batch_size { value: 0 }",
            "must be positive",
        ),
        (["--tensorflow_session_config_file=FILE"], "threads: 3", "ConfigProto"),
        (["--grpc_channel_arguments=keepalive"], "", "'keepalive' is no key=value"),
        (["--grpc_socket_path=/nowhere/socket"], "", "cannot listen at unix:/nowhere/socket"),
    ],
)
def test_what_the_flags_name_and_cannot_be_used_ends_the_start(
    models, tmp_path, flags, content, said
):
    publish(models, tmp_path / "default", 1)
    (tmp_path / "file").write_text(content)
    named = [flag.replace("FILE", str(tmp_path / "file")) for flag in flags]
    server = ModelServer(tmp_path, f"--model_base_path={tmp_path / 'default'}", *named)
    assert server.exit_code() == 255
    assert "Failed to start server. Error: " in server.output
    assert said in server.output
    assert "Traceback" not in server.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_begun_requests_finish(models, tmp_path, number):
    base = tmp_path / "default"
    publish(models, base, 1)
    with serving(tmp_path, f"--model_base_path={base}") as server:
        stub = prediction(server)
        answers: list[object] = []
        request = {"signature_name": "slow", "instances": [20.0]}
        clients = [
            threading.Thread(
                target=lambda: answers.append(
                    stub.Predict(predict_request(20, signature="slow")).outputs["y"].float_val[0]
                )
            ),
            threading.Thread(
                target=lambda: answers.append(server.post("default:predict", request)[1])
            ),
        ]
        for client in clients:
            client.start()
        threading.Event().wait(0.5)  # both are under way, for some seconds
        server.signal(number)
        until(lambda: not server.listens())
        for client in clients:
            client.join()
        assert sorted(answers, key=str) == [11.0, {"predictions": [11.0]}]
        assert server.exit_code() == 0


def test_a_request_that_does_not_finish_within_the_grace_is_given_up(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    flags = (f"--model_base_path={base}", "--shutdown_grace_seconds=1")
    with serving(tmp_path, *flags) as server:
        pending = prediction(server).Predict.future(predict_request(100_000, signature="slow"))
        threading.Event().wait(0.5)  # until it is under way
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert pending.code() is not grpc.StatusCode.OK
        assert "did not finish within the grace" in server.output


def test_a_computation_ends_with_its_clients_deadline(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    with serving(tmp_path, f"--model_base_path={base}", "--grpc_max_threads=1") as server:
        stub = prediction(server)
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(predict_request(100_000, signature="slow"), timeout=1)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # The only thread is free again.
        assert list(stub.Predict(predict_request(0)).outputs["y"].float_val) == [1]


def test_whoever_asks_for_the_state_does_not_wait_for_a_computation(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    with serving(tmp_path, f"--model_base_path={base}", "--grpc_max_threads=1") as server:
        pending = prediction(server).Predict.future(predict_request(100_000, signature="slow"))
        threading.Event().wait(0.2)  # until it is under way
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "default"
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            (version,) = stub.GetModelStatus(request).model_version_status
        assert version.state == version.AVAILABLE
        assert not pending.done()


def test_after_a_kill_in_the_middle_of_requests_the_next_start_serves(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    flags = (f"--model_base_path={base}", f"--grpc_socket_path={tmp_path / 'socket'}")
    with serving(tmp_path, *flags) as server:
        pending = prediction(server).Predict.future(predict_request(1000, signature="slow"))
        until(pending.running)
        server.signal(signal.SIGKILL)
        assert server.exit_code() == -signal.SIGKILL
        assert pending.code() is grpc.StatusCode.UNAVAILABLE
    with serving(tmp_path, *flags) as server:
        assert server.predict(0) == [1]
        response = prediction(server, f"unix:{tmp_path / 'socket'}").Predict(predict_request(0))
        assert list(response.outputs["y"].float_val) == [1]


def test_requests_are_batched_where_that_is_on(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    (tmp_path / "batching").write_text(
        "max_batch_size { value: 16 } batch_timeout_micros { value: 20000 } "
        "max_enqueued_batches { value: 100 } allowed_batch_sizes: 4 allowed_batch_sizes: 16 "
        'thread_pool_name { value: "pool" }'
    )
    (tmp_path / "monitoring").write_text('prometheus_config { enable: true path: "/m" }')
    flags = (
        f"--model_base_path={base}",
        "--enable_batching",
        f"--batching_parameters_file={tmp_path / 'batching'}",
        f"--monitoring_config_file={tmp_path / 'monitoring'}",
    )
    with serving(tmp_path, *flags) as server:
        stub = prediction(server)
        pending = [stub.Predict.future(predict_request(n, n + 1)) for n in range(50)]
        for n, each in enumerate(pending):
            assert list(each.result().outputs["y"].float_val) == [n / 2 + 1, (n + 1) / 2 + 1]
        assert refused(stub.Predict, predict_request(*range(17))) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "Task size 17 is larger than maximum input batch size 16",
        )
        # One client's bad input fails its own request alone.
        checks = [predict_request(n, signature="check") for n in (1, -1, 2)]
        good, bad, other = [stub.Predict.future(request) for request in checks]
        assert good.result() and other.result()
        assert bad.code() is grpc.StatusCode.INVALID_ARGUMENT
        _, page = server.raw("GET", "/m")
        assert b'queuing_latency_count{thread_pool_name="pool"}' in page


def test_the_module_is_started_from_the_shell(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1)
    port = free_port()
    command = [sys.executable, "-m", "graftline.serving.server", f"--model_base_path={base}"]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = subprocess.Popen(
        [*command, "--port=0", "--rest_api_port", str(port), "--bind_address", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, most)),
    )
    for line in process.stdout:
        if "Exporting HTTP/REST API" in line:
            break
    # A connection is a file: as many as the system gives it.
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (most, most)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 0, rest
    assert "Unloaded {name: default version: 1}" in rest


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "--model_base_path="),
        (["--version"], 0, "TensorFlow Library"),
        (["--modelname=x"], 2, "Was --model_name meant?"),
    ],
)
def test_the_module_says_what_it_takes(arguments, code, said):
    command = [sys.executable, "-m", "graftline.serving.server", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_models_of_the_real_servers_tests_are_served(shared_data, tmp_path):
    base = shared_data / "tfserving" / "half_plus_two_2_versions"
    with serving(tmp_path, f"--model_base_path={base}") as server:
        assert server.states() == {124: "AVAILABLE"}
        assert server.predict(1, 2, 5) == [2.5, 3, 4.5]
        body = {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}
        assert server.post("default:regress", body) == (200, {"results": [3.0]})
        _, metadata = server.get("default/metadata")
        signatures = metadata["metadata"]["signature_def"]["signature_def"]
        assert signatures["classify_x_to_y"]["inputs"]["inputs"]["tensor_shape"] == {
            "dim": [],
            "unknown_rank": True,
        }


def test_the_broken_model_of_the_real_servers_tests_is_never_taken(shared_data, tmp_path):
    base = tmp_path / "default"
    shutil.copytree(shared_data / "tfserving" / "bad_half_plus_two", base)
    server = ModelServer(tmp_path, f"--model_base_path={base}")
    try:
        until(lambda: "holds no model (yet): not taken" in server.output)
        assert not server.listens()
    finally:
        server.process.kill()
