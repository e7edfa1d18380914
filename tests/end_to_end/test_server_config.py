"""A real server with a configuration file: several models, labels, reloads by file and by call."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from model_servers import ModelServer, linear_model, serving, until

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base paths `a` and `b`, each with versions 1, 2 and 3: version n adds n, of b ten more."""
    base = tmp_path_factory.mktemp("models")
    for number in (1, 2, 3):
        linear_model(base / "a" / str(number), add=number)
        linear_model(base / "b" / str(number), add=number + 10)
    return base


def model(name: str, base_path: Path, more: str = "", platform: str = "tensorflow") -> str:
    return (
        f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "{platform}" {more} }}'
    )


def versions(*numbers: int) -> str:
    listed = " ".join(f"versions: {number}" for number in numbers)
    return f"model_version_policy {{ specific {{ {listed} }} }}"


def label(name: str, number: int) -> str:
    return f'version_labels {{ key: "{name}" value: {number} }}'


def config(*models: str) -> str:
    return f"model_config_list {{ {' '.join(models)} }}"


class Configured:
    """A server with a configuration file that is looked at every second."""

    def __init__(self, folder: Path, text: str, *flags: str):
        self.file = folder / "models.config"
        self.write(text)
        self.server = ModelServer(
            folder,
            f"--model_config_file={self.file}",
            "--model_config_file_poll_wait_seconds=1",
            *flags,
        )

    def write(self, text: str) -> None:
        """Replaces the file in one step."""
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.rename(self.file)

    def reload(self, text: str, timeout: float = 30) -> tuple[grpc.StatusCode, str]:
        """Sends a configuration by call; returns how that ended."""
        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(text, request.config)
        channel = grpc.insecure_channel(f"127.0.0.1:{self.server.grpc_port}")
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        try:
            response = stub.HandleReloadConfigRequest(request, timeout=timeout)
        except grpc.RpcError as error:
            return error.code(), error.details()
        assert response.status.error_code == 0
        return grpc.StatusCode.OK, ""


@pytest.fixture
def configured(tmp_path: Path) -> Iterator:
    made: list[Configured] = []

    def make(text: str, *flags: str, ready: bool = True) -> Configured:
        made.append(Configured(tmp_path, text, *flags))
        if ready:
            made[-1].server.wait_ready()
        return made[-1]

    yield make
    for each in made:
        each.server.process.kill()
        each.server.process.join()


def test_several_models_are_served_from_one_file(configured, base):
    policy = "model_version_policy { all {} }"
    server = configured(config(model("a", base / "a"), model("b", base / "b", policy))).server
    assert server.states("a") == {3: "AVAILABLE"}
    assert server.states("b") == {3: "AVAILABLE", 2: "AVAILABLE", 1: "AVAILABLE"}
    assert server.predict(0, path="a") == [3]
    assert server.predict(0, path="b/versions/1") == [11]


def test_a_changed_file_is_taken_over(configured, base):
    one = configured(config(model("a", base / "a", versions(1))))
    one.write(config(model("a", base / "a", versions(2)), model("b", base / "b")))
    one.server.until_states({2: "AVAILABLE", 1: "END"}, "a")
    one.server.until_states({3: "AVAILABLE"}, "b")
    one.write(config(model("b", base / "b")))
    one.server.until_states({2: "END", 1: "END"}, "a")
    assert one.server.predict(0, path="b") == [13]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_config_list {", "Error parsing text-format tensorflow.serving.ModelServerConfig"),
        ("models { }", "no field named"),
        (config(model("a", "/x"), model("a", "/y")), "list model a multiple times in config"),
        (config(model("a", "relative")), "Expected model a to have an absolute path"),
        (config(model("a", "/x", platform="")), "Illegal setting neither"),
        (config(model("a", "/x", platform="caffe")), "requests unsupported platform caffe"),
        (config(model("a", "gs://x")), "local folders only"),
        (config(model("a", "/x", label("stable", 1))), "Request to assign label to version 1"),
        ("custom_model_config { }", "does not yet support custom model config"),
    ],
)
def test_a_file_that_cannot_be_followed_ends_the_start(configured, text, said):
    server = configured(text, ready=False).server
    assert server.exit_code() == 255
    assert "Failed to start server. Error: " in server.output
    assert said in server.output


def test_a_file_that_is_not_there_ends_the_start(tmp_path):
    server = ModelServer(tmp_path, f"--model_config_file={tmp_path / 'none'}")
    assert server.exit_code() == 255
    assert "No such file or directory" in server.output


def test_a_file_that_breaks_later_changes_nothing_and_is_mended(configured, base):
    one = configured(config(model("a", base / "a", versions(1))))
    broken = [
        ("model_config_list {", "Error parsing text-format"),
        (config(model("a", base / "a"), model("a", base / "b")), "multiple times in config list"),
        (config(model("a", base / "a", label("stable", 3))), "not currently available"),
    ]
    for text, said in broken:
        one.write(text)
        until(lambda said=said: said in one.server.output)
        assert one.server.states("a") == {1: "AVAILABLE"}
        assert one.server.predict(0, path="a") == [1]
    one.write(config(model("a", base / "a", versions(2))))
    one.server.until_states({2: "AVAILABLE", 1: "END"}, "a")


def test_a_missing_path_of_one_model_does_not_keep_the_others_from_being_served(configured, base):
    one = configured(config(model("a", base / "a", versions(1))))
    one.write(
        config(
            model("lost", base / "nowhere"),
            model("a", base / "a", versions(2)),
            model("b", base / "b"),
        )
    )
    one.server.until_states({2: "AVAILABLE", 1: "END"}, "a")
    one.server.until_states({3: "AVAILABLE"}, "b")
    assert "Could not find base path" in one.server.output
    one.write(config(model("lost", base / "b"), model("a", base / "a"), model("b", base / "b")))
    one.server.until_states({3: "AVAILABLE"}, "lost")


def test_a_path_that_is_missing_at_the_start_is_waited_for(configured, base, tmp_path):
    later = tmp_path / "later"
    text = config(model("a", base / "a"), model("late", later))
    server = configured(text, ready=False).server
    until(lambda: f"Could not find base path {later}" in server.output)
    assert not server.listens()
    later.symlink_to(base / "b")
    assert server.wait_ready().predict(0, path="late") == [13]


def test_an_empty_list_takes_every_model_away(configured, base):
    one = configured(config(model("a", base / "a")), "--model_config_file_poll_wait_seconds=0")
    assert one.reload(config()) == (grpc.StatusCode.OK, "")
    one.server.until_states({3: "END"}, "a")
    assert one.server.post("a:predict", {"instances": [0]})[0] == 404
    assert one.reload(config(model("a", base / "a"))) == (grpc.StatusCode.OK, "")
    assert one.server.predict(0, path="a") == [3]


def test_a_file_that_is_emptied_changes_nothing(configured, base):
    one = configured(config(model("a", base / "a", versions(1))))
    one.write("")
    until(lambda: "Cannot transition to requested config." in one.server.output)
    assert one.server.states("a") == {1: "AVAILABLE"}
    one.write(config())
    one.server.until_states({1: "END"}, "a")


def test_a_file_that_is_empty_at_the_start_may_be_filled_later(configured, base):
    one = configured("")
    assert "Taking no action for an empty configuration" in one.server.output
    one.write(config(model("a", base / "a")))
    one.server.until_states({3: "AVAILABLE"}, "a")


def test_a_models_platform_stays_what_it_is(configured, base):
    one = configured(config(model("a", base / "a", versions(1))))
    other = config(model("a", base / "a", versions(2), platform="caffe"))
    code, said = one.reload(other)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said == (
        "Illegal to change a model's platform. For model a platform was tensorflow and new "
        "platform requested is caffe"
    )
    one.write(other)
    until(lambda: "Illegal to change a model's platform" in one.server.output)
    new = config(model("a", base / "a", versions(2)), model("b", base / "b", platform="caffe"))
    assert one.reload(new) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Model b requests unsupported platform caffe",
    )
    assert one.server.states("a") == {1: "AVAILABLE"}


def test_a_label_names_a_version(configured, base):
    flag = "--allow_version_labels_for_unavailable_models"
    both = versions(1, 2)
    labels = label("stable", 1) + label("canary", 2)
    server = configured(config(model("a", base / "a", both + labels)), flag).server
    assert server.predict(0, path="a/labels/stable") == [1]
    assert server.predict(0, path="a/labels/canary") == [2]
    assert server.predict(0, path="a") == [2]
    status, answer = server.post("a/labels/other:predict", {"instances": [0]})
    assert (status, answer) == (400, {"error": "Unrecognized servable version label: other"})


def test_a_label_moves_only_to_a_version_that_serves(configured, base):
    flag = "--allow_version_labels_for_unavailable_models"
    one = configured(config(model("a", base / "a", versions(1) + label("stable", 1))), flag)
    moved = config(model("a", base / "a", versions(1, 2) + label("stable", 2)))
    code, said = one.reload(moved)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert said == (
        "Request to assign label to version 2 of model a, which is not currently available for "
        "inference"
    )
    assert one.server.predict(0, path="a/labels/stable") == [1]
    one.write(config(model("a", base / "a", versions(1, 2) + label("stable", 1))))
    one.server.until_states({2: "AVAILABLE", 1: "AVAILABLE"}, "a")
    one.write(moved)
    until(lambda: one.server.predict(0, path="a/labels/stable") == [2])
    one.write(config(model("a", base / "a", versions(2) + label("stable", 2))))
    one.server.until_states({2: "AVAILABLE", 1: "END"}, "a")
    assert one.server.predict(0, path="a/labels/stable") == [2]


def test_without_the_flag_a_new_label_needs_a_version_that_serves(configured, base):
    one = configured(config(model("a", base / "a", versions(1))))
    code, _ = one.reload(config(model("a", base / "a", versions(1, 2) + label("new", 2))))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert one.reload(config(model("a", base / "a", versions(1) + label("new", 1))))[0] is (
        grpc.StatusCode.OK
    )


def test_a_label_of_a_version_that_was_unloaded_is_not_found(configured, base):
    flag = "--allow_version_labels_for_unavailable_models"
    labels = label("stable", 1) + label("gone", 9)
    server = configured(config(model("a", base / "a", versions(1) + labels)), flag).server
    status, answer = server.post("a/labels/gone:predict", {"instances": [0]})
    assert (status, answer) == (404, {"error": "Servable not found for request: Specific(a, 9)"})


def test_a_reload_call_waits_for_new_models(configured, base):
    one = configured(config(model("a", base / "a")))
    text = config(model("a", base / "a"), model("b", base / "b"))
    one.write(text)
    assert one.reload(text) == (grpc.StatusCode.OK, "")
    assert one.server.predict(0, path="b") == [13]


def test_a_reload_call_tells_by_how_much_counters_grew(configured, base):
    one = configured(config(model("a", base / "a")), "--model_config_file_poll_wait_seconds=0")
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(config(model("a", base / "a"), model("again", base / "a")), request.config)
    loads = "/tensorflow/cc/saved_model/load_attempt_count"
    request.metric_names.extend([loads, "/tensorflow/serving/request_count", "/no/such"])
    with grpc.insecure_channel(f"127.0.0.1:{one.server.grpc_port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        metrics = stub.HandleReloadConfigRequest(request, timeout=30).metric
    assert [metric.name for metric in metrics] == list(request.metric_names)
    # The one folder was loaded a second time; nobody asked for a prediction.
    assert [metric.int64_value_increase for metric in metrics] == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (
            "",
            grpc.StatusCode.INVALID_ARGUMENT,
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported",
        ),
        (
            "custom_model_config { }",
            grpc.StatusCode.INVALID_ARGUMENT,
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported",
        ),
        (
            config(model("a", "BASE/a"), model("a", "BASE/b")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Illegal to list model a multiple times in config list",
        ),
        (
            config(model("a", "/etc")),
            grpc.StatusCode.PERMISSION_DENIED,
            "Model a may not be served from /etc",
        ),
        (
            config(model("a", "BASE/a/../../../../../../../../etc")),
            grpc.StatusCode.PERMISSION_DENIED,
            "may not be served from",
        ),
    ],
)
def test_a_reload_call_is_refused(configured, base, text, code, said):
    one = configured(config(model("a", base / "a")))
    found, details = one.reload(text.replace("BASE", str(base)))
    assert found is code
    assert details.startswith(said) or said in details
    assert one.server.predict(0, path="a") == [3]


def test_a_reload_call_may_name_the_folders_that_were_allowed(configured, base, tmp_path):
    other = shutil.copytree(base / "b", tmp_path / "other" / "b")
    text = config(model("a", base / "a"), model("other", other))
    refusing = configured(config(model("a", base / "a")))
    assert refusing.reload(text)[0] is grpc.StatusCode.PERMISSION_DENIED
    roots = f"--allowed_model_roots={base},{other.parent}"
    allowing = configured(config(model("a", base / "a")), roots)
    allowing.write(text)
    assert allowing.reload(text)[0] is grpc.StatusCode.OK


def test_a_reload_call_that_waits_for_ever_ends_with_its_client_and_the_next_one_goes_through(
    configured, base
):
    one = configured(config(model("a", base / "a")), "--model_config_file_poll_wait_seconds=0")
    hanging = config(model("a", base / "a"), model("lost", base / "nowhere"))
    assert one.reload(hanging, timeout=1)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    good = config(model("a", base / "a"), model("b", base / "b"))
    assert one.reload(good) == (grpc.StatusCode.OK, "")
    assert one.server.predict(0, path="b") == [13]


def test_a_new_model_that_cannot_be_loaded_fails_its_reload_call(configured, base):
    bad = base / "bad" / "1"
    bad.mkdir(parents=True, exist_ok=True)
    (bad / "saved_model.pb").write_bytes(b"damaged")
    one = configured(config(model("a", base / "a")), "--model_config_file_poll_wait_seconds=0")
    code, said = one.reload(config(model("a", base / "a"), model("bad", base / "bad")))
    assert code is grpc.StatusCode.UNKNOWN
    assert said.startswith("1 model(s) did not become available: {{name: bad version: 1} due to")
    assert one.server.predict(0, path="a") == [3]


def test_a_kill_in_the_middle_of_a_reload_leaves_nothing_behind(configured, base, tmp_path):
    one = configured(config(model("a", base / "a")))
    hanging = config(model("a", base / "a"), model("lost", base / "nowhere"))
    call = threading.Thread(target=one.reload, args=(hanging,))
    call.start()
    until(lambda: "Could not find base path" in one.server.output)
    one.server.signal(signal.SIGKILL)
    call.join()
    assert one.server.exit_code() == -signal.SIGKILL
    with serving(tmp_path, f"--model_config_file={one.file}") as again:
        assert again.predict(0, path="a") == [3]
