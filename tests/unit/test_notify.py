"""Being told: real HTTP and SMTP servers, real commands; whatever they do, a run is not held up."""

import email
import email.policy
import hashlib
import hmac
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from certificates import Authority
from graftline.components.verdict import Check, Verdict
from graftline.kubeflow import steps
from graftline.pipeline import run_record
from graftline.pipeline.config import Config, load_config, override, write_config
from graftline.pipeline.notify.config import EmailConfig, NotifyConfig, WebhookConfig
from graftline.pipeline.notify.delivery import deliver
from graftline.pipeline.notify.notice import Notice, notice_of_run
from graftline.pipeline.notify.tell import tell_of_run
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.serving.errors import UserError
from webhooks import DRIP, HANG, webhook

NOTICE = Notice(event="failed", model="flowers", title="flowers: run-0001 failed", details="why")
VERDICT = Verdict(
    gate="model",
    passed=False,
    checks=(
        Check(
            metric="accuracy",
            slice="overall",
            candidate=0.81,
            baseline=0.93,
            threshold=0.9,
            passed=False,
            note="accuracy is 0.810, less than 0.900",
        ),
    ),
)


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WEBHOOK_URL", "WEBHOOK_SECRET", "SMTP_PASSWORD"):
        monkeypatch.delenv(f"GRAFTLINE_{name}", raising=False)


def by_webhook(url: str, **others: object) -> NotifyConfig:
    return NotifyConfig(webhook=WebhookConfig(url=url), **others)


def a_run(tmp_path: Path, state: str, **fields: object) -> tuple[Project, RunRecord]:
    project = Project(tmp_path, Config())
    record = RunRecord(run_id="run-0003", span=7, version=1, state=state, **fields)
    folder = project.runs / record.run_id
    folder.mkdir(parents=True)
    record.write(project.runs)
    VERDICT.write(folder / "model_gate.json")
    return project, record


def test_a_refusal_is_told_with_the_table_of_the_verdict_and_where_to_look(tmp_path):
    project, record = a_run(tmp_path, run_record.REFUSED, refused_by="model")
    notice = notice_of_run(project, record)
    assert notice
    with webhook() as hook:
        assert deliver(by_webhook(hook.url), notice, tmp_path) == {"webhook": ""}
    [told] = [request.notice for request in hook.received]
    assert told["event"] == "refused"
    assert told["title"] == "model: run-0003 on span 7 was refused by the model gate"
    [row] = [line.split() for line in told["text"].splitlines() if "0.930" in line]
    assert row == ["accuracy", "overall", "0.810", "0.930", "0.900", "no"]
    assert "accuracy is 0.810, less than 0.900" in told["text"]
    assert told["verdicts"][0]["checks"][0]["candidate"] == 0.81
    assert f"log: {project.runs / 'run-0003' / 'run.log'}" in told["text"]


def test_a_published_version_is_told_with_its_number_and_folder(tmp_path):
    project, record = a_run(tmp_path, run_record.PUBLISHED, published_version=4)
    notice = notice_of_run(project, record)
    assert notice
    assert (notice.event, notice.version, notice.span) == ("published", 4, 7)
    assert "version 4 is published" in notice.title
    assert notice.links["version"] == str(project.base_path / "4")


@pytest.mark.parametrize("state", [run_record.INTERRUPTED, run_record.TUNED, run_record.RUNNING])
def test_of_any_other_end_nothing_is_told(tmp_path, state):
    assert notice_of_run(*a_run(tmp_path, state)) is None


def test_a_run_on_a_cluster_that_broke_off_has_failed_and_its_page_is_linked(tmp_path):
    project, record = a_run(tmp_path, run_record.INTERRUPTED, cluster="4f1c", error="evicted")
    config = override(project.config, ["kubeflow.api.address=https://kfp.example/pipeline/"])
    notice = notice_of_run(Project(tmp_path, config), record)
    assert notice
    assert notice.event == "failed"
    assert notice.links["run on the cluster"] == "https://kfp.example/pipeline/#/runs/details/4f1c"


def test_an_address_that_only_pods_know_is_no_link(tmp_path):
    inside = override(Config(), ["kubeflow.api.address=http://ml-pipeline.kubeflow:8888"])
    assert inside.kubeflow.api.run_page("7") == ""
    told = override(inside, ["kubeflow.api.page=https://kfp.example/"])
    assert told.kubeflow.api.run_page("7") == "https://kfp.example/#/runs/details/7"


def test_the_last_step_on_a_cluster_tells_how_the_run_came_out(tmp_path, capsys):
    project, record = a_run(tmp_path, run_record.RUNNING, cluster="4f1c", lease_minutes=9)
    with webhook() as hook:
        config = override(project.config, [f"notify.webhook.url={hook.url}"])
        write_config(config, project.runs / record.run_id / "config.yaml")
        steps.end(tmp_path, project.runs, "4f1c")
    [told] = [request.notice for request in hook.received]
    assert told["event"] == "failed"
    assert "a step was ended before it could say why" in told["text"]
    assert "run-0003: interrupted" in capsys.readouterr().out


def test_the_link_of_the_ci_job_is_told(tmp_path, monkeypatch):
    project, record = a_run(tmp_path, run_record.FAILED, error="boom")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example")
    monkeypatch.setenv("GITHUB_REPOSITORY", "me/flowers")
    monkeypatch.setenv("GITHUB_RUN_ID", "12")
    notice = notice_of_run(project, record)
    assert notice
    assert notice.links["job"] == "https://github.example/me/flowers/actions/runs/12"
    assert "boom" in notice.in_words()


def test_telling_never_raises_and_leaves_a_line_in_the_runs_log(tmp_path, capsys):
    project, record = a_run(tmp_path, run_record.FAILED)
    log = project.runs / record.run_id / run_record.LOG_NAME
    with webhook(404) as hook:
        config = override(project.config, [f"notify.webhook.url={hook.url}"])
        told = Project(tmp_path, config)
        tell_of_run(told, record)
        tell_of_run(told, record)
        (project.runs / record.run_id / "model_gate.json").write_text("{")
        tell_of_run(told, record)
    lines = log.read_text().splitlines()
    assert lines[0].startswith("Not told by webhook: 127.0.0.1 answered 404")
    assert lines[1] == "Told by webhook: model: run-0003 on span 7 failed"
    assert lines[2].startswith("Nobody was told: ")
    assert lines[0] in capsys.readouterr().err


def test_an_event_that_nobody_wants_to_hear_of_is_not_sent(tmp_path):
    with webhook() as hook:
        config = by_webhook(hook.url, events=("published", "refused"))
        assert deliver(config, NOTICE, tmp_path) == {}
    assert not hook.received


def test_a_server_that_fails_at_first_is_asked_again(tmp_path):
    with webhook(503, 429) as hook:
        assert deliver(by_webhook(hook.url), NOTICE, tmp_path) == {"webhook": ""}
    assert len(hook.received) == 3


@pytest.mark.parametrize("code", [400, 404, 302])
def test_an_answer_that_says_no_is_not_asked_for_again(tmp_path, code):
    with webhook(code) as hook:
        outcome = deliver(by_webhook(hook.url), NOTICE, tmp_path)
    assert outcome == {"webhook": f"127.0.0.1 answered {code}"}
    assert len(hook.received) == 1


@pytest.mark.parametrize("badly", [HANG, DRIP])
def test_an_endpoint_that_hangs_is_given_up_at_the_deadline_and_holds_up_no_other(tmp_path, badly):
    with webhook(badly) as hook:
        config = by_webhook(hook.url, deadline_seconds=2.0, command=("touch", "told"))
        outcome = deliver(config, NOTICE, tmp_path)
        assert hook.received
    assert outcome["command"] == ""
    assert (tmp_path / "told").exists()
    # It has returned while the server still held the connection: that is the deadline at work.
    assert outcome["webhook"]


def test_a_process_ends_although_a_channel_of_it_hangs(tmp_path):
    with webhook(DRIP) as hook:
        script = (
            "from pathlib import Path\n"
            "from graftline.pipeline.notify.config import NotifyConfig, WebhookConfig\n"
            "from graftline.pipeline.notify.delivery import deliver\n"
            "from graftline.pipeline.notify.notice import Notice\n"
            f"hook = WebhookConfig(url={hook.url!r})\n"
            "config = NotifyConfig(webhook=hook, deadline_seconds=0.5)\n"
            "notice = Notice(event='failed', model='m', title='t')\n"
            "print(deliver(config, notice, Path()))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
        )
    assert "no answer within" in done.stdout


def test_nobody_at_the_address_is_said_without_the_address_itself(tmp_path):
    with webhook() as hook:
        gone = hook.url
    config = by_webhook(gone.replace("hook", "T0/secret-part"), deadline_seconds=1.0)
    outcome = deliver(config, NOTICE, tmp_path)
    assert outcome["webhook"].startswith("127.0.0.1 was not reached")
    assert "secret" not in outcome["webhook"]


def test_the_address_may_come_from_the_environment_and_the_body_is_signed(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTLINE_WEBHOOK_SECRET", "between us")
    with webhook() as hook:
        monkeypatch.setenv("GRAFTLINE_WEBHOOK_URL", hook.url)
        assert deliver(NotifyConfig(), NOTICE, tmp_path) == {"webhook": ""}
    [request] = hook.received
    digest = hmac.new(b"between us", request.body, hashlib.sha256).hexdigest()
    assert request.headers["X-Graftline-Signature"] == f"sha256={digest}"


def test_a_command_gets_the_notice_on_its_input_and_in_its_environment(tmp_path):
    command = ("sh", "-c", 'cat > notice.json; echo "$GRAFTLINE_EVENT $GRAFTLINE_TITLE" > title')
    assert deliver(NotifyConfig(command=command), NOTICE, tmp_path) == {"command": ""}
    assert json.loads((tmp_path / "notice.json").read_text())["details"] == "why"
    assert (tmp_path / "title").read_text() == "failed flowers: run-0001 failed\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("sh", "-c", "echo no such channel; exit 3"), "exit code 3: no such channel"),
        (("no-such-program",), "No such file"),
    ],
)
def test_a_command_that_fails_is_told_with_what_it_said(tmp_path, command, said):
    assert said in deliver(NotifyConfig(command=command), NOTICE, tmp_path)["command"]


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    command = ("sh", "-c", "(sleep 600; touch late) & echo $! > child; wait")
    config = NotifyConfig(command=command, deadline_seconds=1.0)
    problem = deliver(config, NOTICE, tmp_path)["command"]
    assert "killed" in problem or "no answer" in problem
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        threading.Event().wait(0.05)
    pytest.fail("the command's child is still there")


class OnAnyPort(Controller):
    """An SMTP server on a port that is free."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


class Mailbox:
    """What an SMTP server was given; `answers` are the next replies, `250 OK` once used up."""

    def __init__(self) -> None:
        self.port = 0
        self.messages: list[EmailMessage] = []
        self.answers: list[str] = []
        self.users: list[str] = []

    async def handle_DATA(self, server, session, envelope):
        answer = self.answers.pop(0) if self.answers else "250 OK"
        if answer.startswith("250"):
            message = email.message_from_bytes(envelope.content, policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            self.messages.append(message)
        return answer

    def authenticate(self, server, session, envelope, mechanism, data):
        assert isinstance(data, LoginPassword)
        self.users.append(data.login.decode())
        return AuthResult(success=data.password == b"open sesame", handled=False)


@pytest.fixture
def smtp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Mailbox]]:
    """Starts an SMTP server; returns its mailbox."""
    started = []

    def start(*, secure: bool = False) -> Mailbox:
        mailbox = Mailbox()
        options: dict[str, object] = {}
        if secure:
            authority = Authority("test")
            key, certificate = authority.issue("127.0.0.1")
            (tmp_path / "server.pem").write_bytes(key + certificate)
            (tmp_path / "ca.pem").write_bytes(authority.pem)
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(tmp_path / "server.pem")
            options = {
                "tls_context": context,
                "require_starttls": True,
                "auth_required": True,
                "authenticator": mailbox.authenticate,
            }
        controller = OnAnyPort(mailbox, hostname="127.0.0.1", port=0, **options)
        controller.start()
        started.append(controller)
        mailbox.port = controller.port
        return mailbox

    yield start
    for controller in started:
        controller.stop()


def by_mail(port: int, security: str = "none", **others: object) -> NotifyConfig:
    email_config = EmailConfig(
        server="127.0.0.1",
        port=port,
        security=security,
        sender="graftline@example.org",
        recipients=("a@example.org", "b@example.org"),
        **others,
    )
    return NotifyConfig(email=email_config, deadline_seconds=10.0)


def test_a_mail_has_the_title_as_subject_and_all_in_words(tmp_path, smtp):
    mailbox = smtp()
    mailbox.answers.append("451 busy, come back")
    notice = Notice(event="failed", model="m", title="Fläche:\nfailed", details="why", host="h")
    assert deliver(by_mail(mailbox.port), notice, tmp_path) == {"email": ""}
    [message] = mailbox.messages
    assert message["Subject"] == "Fläche: failed"
    assert message["To"] == "a@example.org, b@example.org"
    assert "why" in message.get_content()


def test_a_mail_that_is_refused_for_good_is_not_sent_again(tmp_path, smtp):
    mailbox = smtp()
    mailbox.answers += ["554 no", "250 OK"]
    assert "answered 554 no" in deliver(by_mail(mailbox.port), NOTICE, tmp_path)["email"]
    assert not mailbox.messages


def test_mail_goes_over_tls_with_the_password_of_the_environment(tmp_path, smtp, monkeypatch):
    mailbox = smtp(secure=True)
    config = by_mail(mailbox.port, "starttls", user="graftline")
    monkeypatch.setenv("GRAFTLINE_SMTP_PASSWORD", "open sesame")
    assert "certificate" in deliver(config, NOTICE, tmp_path)["email"].lower()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert deliver(config, NOTICE, tmp_path) == {"email": ""}
    assert mailbox.users == ["graftline"]

    monkeypatch.setenv("GRAFTLINE_SMTP_PASSWORD", "wrong")
    assert "535" in deliver(config, NOTICE, tmp_path)["email"]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{email: {server: mail.example.org}}", "sender and recipients"),
        ("{events: [exploded]}", "notify.events"),
        ("{webhook: {url: ftp://example.org}}", "notify.webhook.url"),
        ("{deadline_seconds: 0}", "notify.deadline_seconds"),
        (
            "{email: {server: m, sender: a@b.c, recipients: [a@b.c], user: me, security: none}}",
            "password",
        ),
    ],
)
def test_a_section_that_cannot_work_is_refused(tmp_path, section, said):
    (tmp_path / "graftline.yaml").write_text(f"notify: {section}\n")
    with pytest.raises(UserError, match=said):
        load_config(tmp_path / "graftline.yaml")


def test_the_section_is_written_with_its_meaning_and_read_back(tmp_path):
    config = Config(notify=by_mail(25))
    write_config(config, tmp_path / "graftline.yaml")
    assert load_config(tmp_path / "graftline.yaml") == config
