"""A real server asked by real clients: gRPC and REST, versions that come and go, its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from model_servers import ModelServer, free_port, linear_model, serving, until

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models to copy: version n adds n."""
    folder = tmp_path_factory.mktemp("models")
    for number in (1, 2, 3):
        linear_model(folder / str(number), add=number)
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server on version 1 of `default`, which no test changes."""
    folder = tmp_path_factory.mktemp("server")
    publish(models, folder / "default", 1)
    (folder / "monitoring").write_text("prometheus_config { enable: true }")
    flags = (
        f"--model_base_path={folder / 'default'}",
        f"--monitoring_config_file={folder / 'monitoring'}",
        "--enable_grpc_healthcheck_service",
        f"--grpc_socket_path={folder / 'socket'}",
        "--rest_api_enable_cors_support",
        "--rest_api_timeout_in_ms=1000",
    )
    with serving(folder, *flags) as made:
        yield made


def publish(models: Path, base: Path, *numbers: int) -> None:
    """Copies versions into a base path, each by one rename."""
    base.mkdir(exist_ok=True)
    for number in numbers:
        shutil.copytree(models / str(number), base / f"{number}.tmp")
        (base / f"{number}.tmp").rename(base / str(number))


def channel(server: ModelServer, address: str = "") -> grpc.Channel:
    return grpc.insecure_channel(address or f"127.0.0.1:{server.grpc_port}")


def prediction(server: ModelServer, address: str = "") -> object:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel(server, address))


def predict_request(*x: float, signature: str = "", **spec: object) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = str(spec.pop("name", "default"))
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32(x)))
    return request


def example_input(*values: float) -> dict[str, object]:
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.extend(values)
    return {"example_list": {"examples": [example]}}


def refused(call: object, request: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(request)
    return error.value.code(), error.value.details()


def test_a_prediction_over_grpc(server):
    response = prediction(server).Predict(predict_request(1, 2, 5))
    assert list(response.outputs["y"].float_val) == [1.5, 2, 3.5]
    assert response.model_spec.name == "default"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"


def test_a_prediction_over_a_unix_socket(server):
    socket = next(Path(server._output.parent).glob("socket"))
    response = prediction(server, f"unix:{socket}").Predict(predict_request(2))
    assert list(response.outputs["y"].float_val) == [2]


def test_grpc_refusals_have_the_real_servers_codes_and_words(server):
    stub = prediction(server)
    assert refused(stub.Predict, predict_pb2.PredictRequest()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Missing ModelSpec",
    )
    assert refused(stub.Predict, predict_request(1, name="")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "ModelSpec has no name specified.",
    )
    assert refused(stub.Predict, predict_request(1, name="other")) == (
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(other)",
    )
    assert refused(stub.Predict, predict_request(1, version=9)) == (
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Specific(default, 9)",
    )
    assert refused(stub.Predict, predict_request(1, label="stable")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Unrecognized servable version label: stable",
    )
    assert refused(stub.Predict, predict_request(1, signature="other")) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        'Serving signature key "other" not found.',
    )
    assert refused(stub.Predict, predict_request(1, name="n" * 2000))[1].endswith("...TRUNCATED")


def test_classification_regression_and_both_over_grpc(server):
    stub = prediction(server)
    request = classification_pb2.ClassificationRequest(input=example_input(2))
    request.model_spec.name = "default"
    request.model_spec.signature_name = "classify"
    (row,) = stub.Classify(request).result.classifications
    assert [(c.label, c.score) for c in row.classes] == [("low", 2), ("high", 2)]

    request = regression_pb2.RegressionRequest(input=example_input(4))
    request.model_spec.name = "default"
    request.model_spec.signature_name = "regress"
    response = stub.Regress(request)
    assert [each.value for each in response.result.regressions] == [3]
    assert response.model_spec.signature_name == "regress"

    request = inference_pb2.MultiInferenceRequest(input=example_input(4))
    for name in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.name = "default"
        task.model_spec.signature_name = name
    classified, regressed = stub.MultiInference(request).results
    assert classified.classification_result.classifications[0].classes[1].score == 3
    assert regressed.regression_result.regressions[0].value == 3
    assert regressed.model_spec.version.value == 1


def test_metadata_over_grpc(server):
    stub = prediction(server)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "default"
    response = stub.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].name == "x:0"
    assert response.model_spec.signature_name == ""
    request.metadata_field[0] = "graph"
    assert refused(stub.GetModelMetadata, request)[0] is grpc.StatusCode.INVALID_ARGUMENT
    del request.metadata_field[:]
    assert refused(stub.GetModelMetadata, request)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_status_over_grpc(server):
    stub = model_service_pb2_grpc.ModelServiceStub(channel(server))
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "default"
    (version,) = stub.GetModelStatus(request).model_version_status
    assert (version.version, version.state) == (1, version.AVAILABLE)
    assert version.status.error_code == 0
    request.model_spec.name = "other"
    assert refused(stub.GetModelStatus, request) == (
        grpc.StatusCode.NOT_FOUND,
        "Could not find any versions of model other",
    )


def test_health_over_grpc(server):
    stub = health_pb2_grpc.HealthStub(channel(server))
    for service in ("", "PredictionService", "ModelService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown = health_pb2.HealthCheckRequest(service="Other")
    assert refused(stub.Check, unknown)[0] is grpc.StatusCode.NOT_FOUND


def test_rest_answers_byte_by_byte(server):
    assert server.raw("POST", "/v1/models/default:predict", b'{"instances": [1.0, 2.0, 5.0]}') == (
        200,
        b'{\n    "predictions": [1.5, 2.0, 3.5\n    ]\n}',
    )
    assert server.raw("POST", "/v1/models/default:predict", b'{"inputs": [1.0]}') == (
        200,
        b'{\n    "outputs": [\n        1.5\n    ]\n}',
    )
    body = b'{"signature_name": "classify", "examples": [{"x": 2.0}]}'
    assert server.raw("POST", "/v1/models/default:classify", body) == (
        200,
        b'{\n    "results": [[["low", 2.0], ["high", 2.0]]\n    ]\n}',
    )
    body = b'{"signature_name": "regress", "examples": [{"x": 2.0}, {"x": 4.0}]}'
    assert server.raw("POST", "/v1/models/default:regress", body) == (
        200,
        b'{\n    "results": [2.0, 3.0]\n}',
    )
    assert server.raw("GET", "/v1/models/default") == (
        200,
        b'{\n "model_version_status": [\n  {\n   "version": "1",\n   "state": "AVAILABLE",\n'
        b'   "status": {\n    "error_code": "OK",\n    "error_message": ""\n   }\n  }\n ]\n}\n',
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "default:predict", "{", 400, "JSON Parse error: Missing a name"),
        ("POST", "default:predict", "", 400, "JSON Parse error: The document is empty"),
        ("POST", "default:predict", "{}", 400, "Missing 'inputs' or 'instances' key"),
        # The body is parsed before the model is looked up, and its tensors after.
        ("POST", "other:predict", "{", 400, "JSON Parse error"),
        ("POST", "other:predict", "{}", 404, "Servable not found for request: Latest(other)"),
        (
            "POST",
            "default/versions/99:predict",
            "{}",
            404,
            "Servable not found for request: Specific(default, 99)",
        ),
        (
            "POST",
            "default:predict",
            '{"signature_name": "other"}',
            400,
            'Serving signature name: "other" not found in signature def',
        ),
        ("POST", "default/labels/stable:predict", "{}", 400, "version label: stable"),
        ("POST", "default/versions/99999999999999999999:predict", "{}", 400, "to numeric."),
        ("POST", "default:explain", "{}", 400, "Malformed request: POST /v1/models/default:e"),
        ("POST", "default:PREDICT", "{}", 400, "Malformed request: POST"),
        ("POST", "default/versions/1/labels/a:predict", "{}", 400, "Malformed request"),
        ("POST", "default/versions/x:predict", "{}", 400, "Malformed request"),
        ("PUT", "default:predict", "{}", 400, "Malformed request: PUT /v1/models/default:predict"),
        ("DELETE", "default", "", 400, "Malformed request: DELETE /v1/models/default"),
        ("GET", "default:predict", "", 400, "Malformed request: GET"),
        ("GET", "default/versions/9", "", 404, "Could not find version 9 of model default"),
        ("GET", "other", "", 404, "Could not find any versions of model other"),
        ("GET", "other/metadata", "", 404, "Servable not found for request: Latest(other)"),
        ("GET", "default/more", "", 400, "Malformed request"),
    ],
)
def test_rest_refusals_have_the_real_servers_codes_and_words(
    server, method, path, body, status, said
):
    found, answer = server.raw(method, f"/v1/models/{path}", body.encode())
    assert found == status
    error = json.loads(answer)
    assert list(error) == ["error"]
    assert said in error["error"]


def test_the_list_of_models_is_not_offered(server):
    status, body = server.raw("GET", "/v1/models")
    assert (status, json.loads(body)) == (400, {"error": "Missing model name in request."})


def test_paths_ignore_case_and_queries_and_percent_signs_are_decoded(server):
    body = b'{"instances": [2]}'
    for path in (
        "/V1/MODELS/default:predict",
        "/v1/models/default/Versions/1:predict?x=y",
        "/v1/models/d%65fault:predict",
    ):
        assert server.raw("POST", path, body)[0] == 200, path
    assert server.raw("GET", "/v1/models/default/labels/any")[0] == 200
    assert server.raw("POST", "/v1/models/Default:predict", body)[0] == 404


def test_a_content_type_is_not_asked_for_and_json_is_answered(server):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
    connection.request("POST", "/v1/models/default:predict", b'{"instances": [2]}')
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "application/json"
    response.read()
    connection.close()


def test_browsers_of_other_origins_are_answered_where_that_is_on(server):
    path = "/v1/models/default:predict"
    assert server.raw("OPTIONS", path, Origin="https://example.org")[0] == 200
    assert server.raw("OPTIONS", path)[0] == 400


def test_a_packed_body_is_unpacked(server):
    import gzip

    body = gzip.compress(b'{"instances": [2]}')
    path = "/v1/models/default:predict"
    assert server.raw("POST", path, body, Content_Encoding="gzip")[0] == 200
    assert server.raw("POST", path, b"no gzip", Content_Encoding="gzip")[0] == 400


def test_a_rest_request_that_takes_too_long_is_ended(server):
    status, answer = server.post(
        "default:predict", {"signature_name": "slow", "instances": [1000.0]}
    )
    assert status == 504
    assert list(answer) == ["error"]


def test_paths_that_are_not_the_apis_get_the_page_of_the_real_server(server):
    for path in ("/", "/v2/models/default", "/monitoring", "/v1"):
        status, body = server.raw("GET", path)
        assert (status, body[:6]) == (404, b"<HTML>"), path


def test_metadata_over_rest(server):
    status, answer = server.get("default/versions/1/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "default", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"
    assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"


def test_metrics_have_the_real_servers_names(server):
    server.predict(1)
    server.predict(1, path="made-up")
    prediction(server).Predict(predict_request(1))
    status, page = server.raw("GET", "/monitoring/prometheus/metrics")
    assert status == 200
    text = page.decode()
    assert ':tensorflow:serving:request_count{model_name="default",status="OK"} ' in text
    assert (
        ":tensorflow:serving:request_latency_bucket"
        '{model_name="default",API="Predict",entrypoint="REST",le="+Inf"} '
    ) in text
    assert 'entrypoint="GRPC",le="18"' in text
    assert "made-up" not in text


def test_the_log_says_where_it_listens(server):
    assert f"Running gRPC ModelServer at 127.0.0.1:{server.grpc_port} ..." in server.output
    assert f"Exporting HTTP/REST API at:127.0.0.1:{server.rest_port} ..." in server.output


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


def test_a_port_that_is_taken_ends_the_start(server, models, tmp_path):
    publish(models, tmp_path / "default", 1)
    for flags in (
        (f"--port={server.grpc_port}", "--rest_api_port=0"),
        ("--port=0", f"--rest_api_port={server.rest_port}"),
    ):
        other = ModelServer(tmp_path, f"--model_base_path={tmp_path / 'default'}", *flags)
        assert other.exit_code() == 255
        assert "Failed to" in other.output
    assert server.predict(0) == [1]


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
    process = subprocess.Popen(
        [*command, "--port=0", "--rest_api_port", str(port), "--bind_address", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if "Exporting HTTP/REST API" in line:
            break
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
