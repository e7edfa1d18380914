"""A real server asked by real clients, over gRPC and over REST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
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
    regression_pb2,
)

from model_servers import (
    ModelServer,
    predict_request,
    prediction,
    publish,
    refused,
    serving,
    until,
)

pytestmark = pytest.mark.end_to_end


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


def channel(server: ModelServer) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")


def example_input(*values: float) -> dict[str, object]:
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.extend(values)
    return {"example_list": {"examples": [example]}}


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
    _, headers, _ = server.ask("POST", "/v1/models/default:predict", b'{"instances": [2]}')
    assert headers["Content-Type"] == "application/json"


PREDICT = "/v1/models/default:predict"


@pytest.mark.parametrize(
    ("method", "path", "body", "more", "status"),
    [
        ("OPTIONS", PREDICT, None, {}, 200),
        ("POST", PREDICT, b'{"instances": [2]}', {}, 200),
        ("GET", "/v1/models/default", None, {}, 200),
        ("POST", PREDICT, b"{", {}, 400),
        ("GET", "/v1/models/other", None, {}, 404),
        ("POST", PREDICT, None, {"Content_Length": "99999999999"}, 413),
    ],
)
def test_pages_of_other_origins_may_read_every_answer_where_that_is_on(
    server, method, path, body, more, status
):
    found, headers, _ = server.ask(method, path, body, Origin="https://example.org", **more)
    assert found == status
    assert {name: value for name, value in headers.items() if "allow" in name.lower()} == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST, GET",
        "access-control-allow-headers": "Content-Type",
    }


@pytest.mark.parametrize("origin", ["", "null", "file://", "ftp://example.org", "example.org"])
def test_what_is_no_origin_of_the_web_may_not_ask_beforehand(server, origin):
    assert server.raw("OPTIONS", PREDICT, Origin=origin)[0] == 400
    assert server.raw("OPTIONS", PREDICT)[0] == 400


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


def test_every_metric_has_the_real_servers_name_and_an_example_is_counted(server):
    def value(sample: str) -> float:
        _, page = server.raw("GET", "/monitoring/prometheus/metrics")
        lines = [line for line in page.decode().splitlines() if line.startswith(sample + " ")]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    counted = (
        ':tensorflow:serving:request_example_counts_count{model="default"}',
        ':tensorflow:serving:request_example_count_total{model="default"}',
        ":tensorflow:serving:runtime_latency_count"
        '{model_name="default",API="Classify",runtime="TF1"}',
    )
    before = [value(sample) for sample in counted]
    request = classification_pb2.ClassificationRequest(input=example_input(2))
    request.model_spec.name = "default"
    request.model_spec.signature_name = "classify"
    prediction(server).Classify(request)
    assert [value(sample) for sample in counted] == [count + 1 for count in before]

    _, page = server.raw("GET", "/monitoring/prometheus/metrics")
    types = dict(line.split()[2:] for line in page.decode().splitlines() if line[:6] == "# TYPE")
    assert types == {
        ":tensorflow:serving:request_count": "counter",
        ":tensorflow:serving:request_latency": "histogram",
        ":tensorflow:serving:runtime_latency": "histogram",
        ":tensorflow:serving:request_example_counts": "histogram",
        ":tensorflow:serving:request_example_count_total": "counter",
        ":tensorflow:serving:model_warmup_latency": "histogram",
        ":tensorflow:serving:batching_session:queuing_latency": "histogram",
        ":tensorflow:cc:saved_model:load_attempt_count": "counter",
    }


def test_the_log_says_where_it_listens(server):
    last = f"Exporting HTTP/REST API at:127.0.0.1:{server.rest_port} ..."
    until(lambda: last in server.output)
    assert f"Running gRPC ModelServer at 127.0.0.1:{server.grpc_port} ..." in server.output


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
