"""The Dockerfiles: pinned, without root, from the lock files, and what their context holds."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from deployment import DEPLOY, REPOSITORY, run, tool
from graftline.serving.gateway.config import GatewayConfig
from images import Instruction, ignored, stages

DOCKERFILE = REPOSITORY / "kubeflow" / "Dockerfile"
GATEWAY = DEPLOY / "gateway" / "Dockerfile"
DOCKERFILES = (DOCKERFILE, GATEWAY)
# Stages that run, in contrast to those that build.
IMAGES = (
    (DOCKERFILE, "training"),
    (DOCKERFILE, "beam-worker"),
    (DOCKERFILE, "notebook"),
    (GATEWAY, "last"),
)


def chain(dockerfile: Path, name: str) -> list[Instruction]:
    """The instructions of a stage and of those that it starts from."""
    found = stages(dockerfile)
    if name not in found:
        return []
    first, *others = found[name]
    return [*chain(dockerfile, first.value.split()[0]), *others]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_dockerfile_passes_its_linter(dockerfile):
    done = run(tool("hadolint", "hadolint"), dockerfile)
    assert done.returncode == 0, done.stdout


def test_all_images_start_from_the_same_python_which_the_lock_file_is_for():
    bases = set()
    for dockerfile in DOCKERFILES:
        text = dockerfile.read_text()
        bases |= set(re.findall(r"^(?:FROM python:|ARG PYTHON=)(\d\S+)", text, re.MULTILINE))
    [base] = bases
    assert re.fullmatch(r"3\.13\.\d+-slim-trixie", base)


@pytest.mark.parametrize(("dockerfile", "name"), IMAGES)
def test_an_image_runs_as_a_numbered_user_without_root(dockerfile, name):
    users = [one.value for one in chain(dockerfile, name) if one.name == "USER"]
    assert users[-1] == "65532:65532"


@pytest.mark.parametrize(("dockerfile", "name"), IMAGES)
def test_an_image_says_what_it_is_and_of_which_version(dockerfile, name):
    labels = " ".join(one.value for one in chain(dockerfile, name) if one.name == "LABEL")
    said = dict(re.findall(r'org\.opencontainers\.image\.([a-z]+)="([^"]*)"', labels))
    [version] = re.findall(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert said["version"] == version
    assert said["licenses"] == "Apache-2.0"
    assert said["revision"] == "${REVISION}"


def test_what_answers_has_a_health_check_and_what_ends_has_none():
    assert any(one.name == "HEALTHCHECK" for one in chain(DOCKERFILE, "notebook"))
    assert not any(one.name == "HEALTHCHECK" for one in chain(DOCKERFILE, "training"))


def test_the_gateways_health_check_asks_its_port_with_what_the_image_has():
    [check] = [one.value for one in chain(GATEWAY, "last") if one.name == "HEALTHCHECK"]
    kind, _, command = check.partition(" ")
    assert kind == "CMD"
    python, option, code = json.loads(command)
    assert (python, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert f"'http://127.0.0.1:{GatewayConfig().port}/healthz'" in code
    assert f"EXPOSE {GatewayConfig().port}\n" in GATEWAY.read_text()


def test_no_secret_is_an_argument_or_a_variable():
    for dockerfile in DOCKERFILES:
        for instructions in stages(dockerfile).values():
            for one in instructions:
                if one.name in ("ARG", "ENV"):
                    assert not re.search("PASSWORD|TOKEN|SECRET|KEY", one.value), one.value


def test_the_lock_of_images_names_nothing_twice_and_only_pins():
    lines = (REPOSITORY / "requirements/images.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    names = [line.partition("==")[0] for line in lines]
    assert len(set(names)) == len(names)
    assert {"jupyterlab", "ipykernel", "nvidia-cudnn-cu12", "nvidia-cuda-runtime-cu12"} <= {*names}
    of_the_stack = (REPOSITORY / "requirements/tfx-1.21.lock").read_text().splitlines()
    for line in lines:
        name = line.partition("==")[0]
        others = [other for other in of_the_stack if other.startswith(f"{name}==")]
        # One that the stack pins for some systems only is the same here.
        assert all(other.partition(" ;")[0] == line or " ;" in other for other in others), line


def test_the_context_holds_what_is_copied_and_no_secret_or_data():
    committed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if not committed:
        pytest.skip("the files of the context are not known: this is no Git checkout")
    sent = set(committed) - ignored(committed)
    for dockerfile in DOCKERFILES:
        for instructions in stages(dockerfile).values():
            for one in instructions:
                if one.name == "COPY" and "from" not in one.flags:
                    for source in one.words()[:-1]:
                        assert any(f"{path}/".startswith(f"{source}/") for path in sent), source
    assert not [path for path in sent if path.startswith(("tests/", "docs/", "benchmarks/"))]
    kept_out = [
        ".git/config",
        ".venv/bin/python",
        "build/debian13/etc/shadow",
        "demo/graftline.yaml",
        "serving/deploy/.env",
        "kubeflow/manifests/.env",
        "pipeline/__pycache__/config.cpython-313.pyc",
        "secrets/api_keys",
    ]
    assert ignored(kept_out) == set(kept_out)
