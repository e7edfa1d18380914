"""Submitting to Kubeflow Pipelines, against a server that holds requests to its definition."""

import json
import socket

import pytest

from certificates import Authority
from graftline.components.verdict import Check, Verdict
from graftline.kubeflow import submit
from graftline.kubeflow.api import Api
from graftline.kubeflow.package import Package
from graftline.pipeline import run_record
from graftline.pipeline.config import Config, override
from graftline.pipeline.kubeflow_config import ApiConfig
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.serving.errors import UserError
from kubeflow_api import operations, problems
from kubeflow_server import TOKEN, kubeflow, kubeflow_server, package


def test_a_run_is_of_the_package_just_uploaded_and_has_the_parameters_that_were_asked_for(
    on_cluster, cluster, capsys
):
    asked = ("submit", "--span", "7", "--force", "trainer.batch_size=64")
    assert kubeflow(on_cluster, *asked) == 0
    [run] = cluster.runs.values()
    [version] = cluster.versions
    assert (
        run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    )
    assert run["runtime_config"]["parameters"] == {
        "span": 7,
        "force": True,
        "overrides": '["trainer.batch_size=64"]',
    }
    assert cluster.packages == [(on_cluster / "kubeflow.yaml").read_bytes()]
    assert [one["display_name"] for one in cluster.pipelines.values()] == ["flowers"]
    assert [one["display_name"] for one in cluster.experiments.values()] == ["flowers"]
    assert f"{cluster.url}/#/runs/details/{run['run_id']}" in capsys.readouterr().out


def test_without_a_span_none_is_sent_for_the_run_finds_its_own(on_cluster, cluster):
    assert kubeflow(on_cluster, "submit") == 0
    [run] = cluster.runs.values()
    assert run["runtime_config"]["parameters"] == {}


def test_the_same_package_is_one_version_and_another_one_the_next(on_cluster, cluster):
    for _ in range(2):
        assert kubeflow(on_cluster, "submit") == 0
    assert len(cluster.versions) == 1
    first = (on_cluster / "kubeflow.yaml").read_text()
    package(on_cluster / "kubeflow.yaml", sdkVersion="other")
    assert kubeflow(on_cluster, "submit") == 0
    (on_cluster / "kubeflow.yaml").write_text(first)
    assert kubeflow(on_cluster, "submit") == 0
    names = [one["display_name"] for one in cluster.versions]
    assert len(set(names)) == 3
    assert names[2] == f"{names[0]}-2"


def test_the_newest_version_is_run_whatever_package_lies_here(on_cluster, cluster, capsys):
    assert kubeflow(on_cluster, "submit", "--newest") == 2
    assert "No version of the pipeline 'flowers' was uploaded yet" in capsys.readouterr().err
    assert kubeflow(on_cluster, "submit") == 0
    package(on_cluster / "kubeflow.yaml", sdkVersion="older, on somebody's disk")
    assert kubeflow(on_cluster, "submit", "--newest", "--span", "7", "--wait") == 0
    assert len(cluster.versions) == 1
    [_, run] = cluster.runs.values()
    assert run["pipeline_version_reference"]["pipeline_version_id"] == "version-3"
    assert run["runtime_config"]["parameters"] == {"span": 7}
    (on_cluster / "kubeflow.yaml").unlink()
    assert kubeflow(on_cluster, "submit", "--newest", "--accept-anomalies") == 2
    assert "the version" in capsys.readouterr().err


def test_waiting_shows_each_step_and_ends_well_only_where_the_run_succeeded(
    on_cluster, cluster, capsys
):
    cluster.course = [
        ("PENDING", {}),
        ("RUNNING", {"begin": "SUCCEEDED", "trainer": "RUNNING"}),
        ("RUNNING", {"begin": "SUCCEEDED", "trainer": "SUCCEEDED"}),
        ("SUCCEEDED", {"begin": "SUCCEEDED", "trainer": "SUCCEEDED", "pusher": "SUCCEEDED"}),
    ]
    assert kubeflow(on_cluster, "submit", "--wait") == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    steps = [["begin", "succeeded"], ["Trainer", "succeeded"], ["Pusher", "succeeded"]]
    assert [line for line in shown if line[-1:] == ["succeeded"]] == steps


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_waiting_fails_where_the_run_came_to_any_other_end(on_cluster, cluster, capsys, state):
    cluster.course = [(state, {"begin": "SUCCEEDED", "trainer": "FAILED"})]
    assert kubeflow(on_cluster, "submit", "--wait", "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["state"] == state
    assert f"The run ended {state} at Trainer" in said["error"]
    assert said["exit_code"] == 1


def test_a_gate_that_said_no_is_told_from_a_failure(on_cluster, cluster, capsys):
    cluster.course = [("FAILED", {"trainer": "SUCCEEDED", "refused-2": "FAILED"})]
    assert kubeflow(on_cluster, "submit", "--wait") == 3
    assert "A gate said no" in capsys.readouterr().err


def test_the_verdict_is_told_where_the_projects_folder_is_the_one_of_the_steps(
    on_cluster, cluster, capsys
):
    cluster.course = [("FAILED", {"trainer": "SUCCEEDED", "refused-2": "FAILED"})]
    check = Check(metric="accuracy", slice="overall", candidate=0.5, passed=False, note="too low")
    folder = on_cluster / "runs" / "run-0001"
    Verdict(gate="model", passed=False, checks=(check,)).write(folder / "model_gate.json")
    RunRecord(
        run_id="run-0001",
        span=1,
        version=1,
        state=run_record.REFUSED,
        refused_by="model",
        error="The model gate: refused",
        cluster="run-4",
    ).write(on_cluster / "runs")
    assert kubeflow(on_cluster, "submit", "--wait", "--json") == 3
    assert list(cluster.runs) == ["run-4"]
    told = json.loads(capsys.readouterr().out)
    assert "The model gate: refused" in told["refused"]
    assert told["verdict"]["checks"][0]["note"] == "too low"


def test_a_run_of_a_name_that_is_under_way_or_succeeded_is_not_started_again(on_cluster, cluster):
    cluster.course = [("RUNNING", {}), ("SUCCEEDED", {})]
    for _ in range(3):
        assert kubeflow(on_cluster, "submit", "--wait", "--name", "drop-7") == 0
    assert len(cluster.runs) == 1


def test_a_run_of_a_name_that_failed_is_started_again(on_cluster, cluster):
    cluster.course = [("FAILED", {})]
    for _ in range(2):
        assert kubeflow(on_cluster, "submit", "--wait", "--name", "drop-7") == 1
    assert len(cluster.runs) == 2


def test_a_server_that_is_away_for_a_moment_does_not_end_the_waiting(on_cluster, cluster):
    api = Api(ApiConfig(address=cluster.url), on_cluster)
    project = Project.find(on_cluster)
    found = Package.read(on_cluster / "kubeflow.yaml")
    run = submit.submit(api, project, found, {}, print)
    cluster.course = [("RUNNING", {}), ("SUCCEEDED", {})]
    cluster.fails = [503, 502, 503]
    assert submit.follow(api, run["run_id"], found, print)["state"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"spam": 7}, "no parameter 'spam'; it has force, overrides, reason, span, window"),
        ({"span": "seven"}, "span must be of type NUMBER_INTEGER, found 'seven'"),
        ({"span": True}, "span must be of type NUMBER_INTEGER"),
        ({"force": 1}, "force must be of type BOOLEAN"),
    ],
)
def test_a_parameter_that_is_unknown_or_of_another_type_is_refused_before_anything_is_asked(
    on_cluster, cluster, parameters, said
):
    api = Api(ApiConfig(address=cluster.url), on_cluster)
    with pytest.raises(UserError, match=said):
        submit.submit(
            api,
            Project.find(on_cluster),
            Package.read(on_cluster / "kubeflow.yaml"),
            parameters,
            print,
        )
    assert not cluster.requests


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no package"),
        ("{", "not YAML"),
        ("just: this", "lacks 'schemaVersion'"),
        ("{schemaVersion: 2.0.0, root: {}}", "has schema 2.0.0"),
    ],
)
def test_a_package_that_is_none_is_refused(on_cluster, cluster, capsys, content, said):
    if content is None:
        (on_cluster / "kubeflow.yaml").unlink()
    else:
        (on_cluster / "kubeflow.yaml").write_text(content)
    assert kubeflow(on_cluster, "submit") == 2
    assert said in capsys.readouterr().err
    assert not cluster.requests


def test_a_token_is_read_anew_so_that_one_that_expired_is_renewed(on_cluster, cluster):
    cluster.tokens = {TOKEN}
    (on_cluster / "token").write_text(f"{TOKEN}\n")
    api = Api(ApiConfig(address=cluster.url, token_file="token"), on_cluster)
    assert api.find_pipeline("flowers") is None
    cluster.tokens = {"the next token"}
    with pytest.raises(UserError, match=r"does not accept the token \(401\).*Renew it in .*token"):
        api.find_pipeline("flowers")
    (on_cluster / "token").write_text("the next token")
    assert api.find_pipeline("flowers") is None


def test_a_token_may_come_from_the_environment(on_cluster, cluster, monkeypatch):
    cluster.tokens = {TOKEN}
    assert kubeflow(on_cluster, "submit") == 2
    monkeypatch.setenv("GRAFTLINE_KUBEFLOW_TOKEN", TOKEN)
    assert kubeflow(on_cluster, "submit") == 0


def test_a_login_page_in_front_of_the_api_is_recognised(on_cluster, cluster, capsys):
    cluster.tokens, cluster.login = {TOKEN}, True
    assert kubeflow(on_cluster, "submit") == 2
    assert "wants a login (login.example/dex/auth)" in capsys.readouterr().err


def test_no_cluster_at_the_address_is_said(on_cluster, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"kubeflow.api.address=http://127.0.0.1:{port}"
    assert kubeflow(on_cluster, "status", address) == 2
    said = capsys.readouterr().err
    assert f"does not answer at http://127.0.0.1:{port}: " in said
    assert "Connection refused" in said


def test_without_an_address_nothing_is_asked(on_cluster, monkeypatch, capsys):
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    assert kubeflow(on_cluster, "status", "kubeflow.api.address=''") == 2
    assert "kubeflow.api.address" in capsys.readouterr().err


def test_the_certificate_of_the_server_is_verified(on_cluster, tmp_path):
    authority = Authority("test")
    key, certificate = authority.issue("127.0.0.1")
    (tmp_path / "server.pem").write_bytes(key + certificate)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    with kubeflow_server(tmp_path / "server.pem") as server:
        with pytest.raises(UserError, match=r"certificate .* is not accepted.*ca_file"):
            Api(ApiConfig(address=server.url), on_cluster).find_pipeline("flowers")
        known = Api(ApiConfig(address=server.url, ca_file="ca.pem"), on_cluster)
        assert known.find_pipeline("flowers") is None


def test_what_is_not_the_api_is_said_to_be_something_else(on_cluster, cluster, capsys):
    from webhooks import webhook

    with webhook(200) as other:
        address = f"kubeflow.api.address={other.url}"
        assert kubeflow(on_cluster, "status", address) == 2
    assert "501" in capsys.readouterr().err


def test_status_shows_the_last_runs_and_the_steps_of_one(on_cluster, cluster, capsys):
    assert kubeflow(on_cluster, "status") == 0
    assert "No run yet" in capsys.readouterr().out
    assert not cluster.experiments
    for span in range(1, 4):
        assert kubeflow(on_cluster, "submit", "--span", str(span)) == 0
    capsys.readouterr()
    assert kubeflow(on_cluster, "status", "--json") == 0
    names = [run["name"].split(",")[1].strip() for run in json.loads(capsys.readouterr().out)]
    assert names == ["span 3", "span 2", "span 1"]
    cluster.course = [("RUNNING", {"begin": "SUCCEEDED"})]
    assert kubeflow(on_cluster, "status", next(iter(cluster.runs))) == 0
    assert ["begin", "succeeded"] in [s.split() for s in capsys.readouterr().out.splitlines()]
    assert kubeflow(on_cluster, "status", "no-such-run") == 2
    assert "no run no-such-run" in capsys.readouterr().err


def test_the_servers_definition_is_the_published_one_and_tells_what_is_wrong():
    known = {operation.name: operation for operation in operations()}
    assert known["run_service_create_run"].body == "V2beta1Run"
    assert list(problems("V2beta1Run", {"display_nam": "x"})) == [
        ".display_nam: V2beta1Run has no such field"
    ]
    assert list(problems("V2beta1RecurringRun", {"max_concurrency": 1}))
    assert list(problems("V2beta1RecurringRun", {"mode": "ON"}))
    assert not list(problems("V2beta1RecurringRun", {"mode": "ENABLE", "max_concurrency": "1"}))


def test_the_section_is_refused_where_the_address_is_none(on_cluster):
    with pytest.raises(UserError, match=r"kubeflow\.api\.address"):
        override(Config(), ["kubeflow.api.address=ftp://x"])
