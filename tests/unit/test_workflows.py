"""The workflows of GitHub and GitLab: valid, safe, and calling the commands that they should."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github" / "workflows"
GITLAB = ROOT / ".gitlab-ci.yml"
TOOLS = Path(sys.executable).parent
SCHEMAS = {"github": ["vendor.github-workflows"], "gitlab": ["vendor.gitlab-ci"]}


class _Loader(yaml.SafeLoader):
    """Reads `on` as a word, as both of them do."""


_Loader.yaml_implicit_resolvers = {
    letter: [one for one in resolvers if one[0] != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(), _Loader)
    return found


def check(system: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Holds a file against the schema that comes with check-jsonschema; no network is asked."""
    extra = ["--data-transform", "gitlab-ci"] if system == "gitlab" else []
    return subprocess.run(
        [TOOLS / "check-jsonschema", "--builtin-schema", *SCHEMAS[system], *extra, path],
        capture_output=True,
        text=True,
        check=False,
    )


def scripts() -> dict[str, str]:
    """The shell scripts of all jobs, by the names of job and step."""
    found = {}
    for path in GITHUB.glob("*.yml"):
        for name, job in read(path)["jobs"].items():
            for step in job["steps"]:
                if "run" in step:
                    found[f"github {name}: {step.get('name', step['run'])}"] = step["run"]
    for name, job in read(GITLAB).items():
        if isinstance(job, dict) and "script" in job:
            found[f"gitlab {name}"] = "\n".join(job["script"])
    return found


def carried_out(tmp_path: Path, script: str, **environment: str) -> list[str]:
    """The commands of ours that a script calls, each of them succeeding."""
    program = tmp_path / "bin" / "graftline"
    program.parent.mkdir(exist_ok=True)
    program.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\nexit "${CODE:-0}"\n')
    program.chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    variables = {"PATH": f"{program.parent}:{os.environ['PATH']}", "CALLS": str(calls)}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        env={**variables, **environment},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == int(environment.get("CODE", 0))
    return calls.read_text().splitlines()


@pytest.mark.parametrize("path", sorted(GITHUB.glob("*.yml")), ids=lambda path: path.name)
def test_a_github_workflow_is_valid(path):
    done = check("github", path)
    assert done.returncode == 0, done.stdout


def test_the_gitlab_file_is_valid():
    done = check("gitlab", GITLAB)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("system", "path", "good", "bad"),
    [
        ("github", GITHUB / "train-on-drop.yml", "runs-on: [", "runs-at: ["),
        ("gitlab", GITLAB, "when: never", "when: sometimes"),
    ],
)
def test_a_slip_in_a_workflow_would_be_found(tmp_path, system, path, good, bad):
    text = path.read_text()
    assert good in text
    (tmp_path / path.name).write_text(text.replace(good, bad))
    assert check(system, tmp_path / path.name).returncode == 1


def test_the_github_workflows_are_safe():
    done = subprocess.run(
        [TOOLS / "zizmor", "--offline", "--no-progress", GITHUB],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", scripts())
def test_the_scripts_in_the_workflows_are_sound(tmp_path, name):
    script = tmp_path / "script.sh"
    script.write_text(f"#!/usr/bin/env bash\n{scripts()[name]}\n")
    done = subprocess.run(
        [TOOLS / "shellcheck", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


DROP = {
    "github": "github train: Take what has arrived, and train on it",
    "gitlab": "gitlab train-on-drop",
}
AGAIN = {
    "github": "github train: Train again, for code, configuration or a person asks for it",
    "gitlab": "gitlab train-again",
}
ON_CLUSTER = {"github": "SUBMIT", "gitlab": "GRAFTLINE_SUBMIT"}


@pytest.mark.parametrize("system", ["github", "gitlab"])
def test_both_call_the_same_two_commands(tmp_path, system):
    drop, again = scripts()[DROP[system]], scripts()[AGAIN[system]]
    assert carried_out(tmp_path, drop) == ["watch --once"]
    assert carried_out(tmp_path, again) == ["run --force"]
    assert carried_out(tmp_path, again, SPAN="7") == ["run --force --span 7"]


@pytest.mark.parametrize("system", ["github", "gitlab"])
def test_on_a_cluster_they_are_submitted(tmp_path, system):
    drop, again = scripts()[DROP[system]], scripts()[AGAIN[system]]
    on = {ON_CLUSTER[system]: "true"}
    assert carried_out(tmp_path, drop, **on) == ["watch --once --submit"]
    assert carried_out(tmp_path, again, SPAN="7", **on) == [
        "kubeflow compile",
        "kubeflow submit --wait --force --span 7",
    ]


@pytest.mark.parametrize(
    ("system", "image", "commit"),
    [("github", "IMAGE", "GITHUB_SHA"), ("gitlab", "GRAFTLINE_IMAGE", "CI_COMMIT_SHA")],
)
def test_code_that_was_pushed_runs_on_a_cluster_in_an_image_of_its_own(
    tmp_path, system, image, commit
):
    named = {ON_CLUSTER[system]: "true", image: "registry.example/flowers", commit: "4f1c"}
    first = carried_out(tmp_path, scripts()[AGAIN[system]], **named)[0]
    assert first == "kubeflow compile kubeflow.image=registry.example/flowers:4f1c"


@pytest.mark.parametrize("system", ["github", "gitlab"])
@pytest.mark.parametrize("code", ["1", "2", "3"])
def test_exit_codes_decide_the_job(tmp_path, system, code):
    for job in (DROP[system], AGAIN[system]):
        called = carried_out(tmp_path, scripts()[job], CODE=code)
        assert len(called) == 1, "nothing follows what has failed"


def test_a_span_that_is_no_number_is_nothing_to_the_shell(tmp_path):
    called = carried_out(tmp_path, scripts()[AGAIN["github"]], SPAN="7; touch x $(touch y)")
    assert called == ["run --force --span 7; touch x $(touch y)"]
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_training_starts_on_drops_by_hand_by_the_clock_and_on_changes():
    workflow = read(GITHUB / "train-on-drop.yml")
    assert set(workflow["on"]) == {"repository_dispatch", "workflow_dispatch", "schedule", "push"}
    assert workflow["on"]["repository_dispatch"]["types"] == ["data-drop"]
    assert "span" in workflow["on"]["workflow_dispatch"]["inputs"]
    assert workflow["concurrency"]["cancel-in-progress"] == "false"


def test_without_a_runner_of_its_own_nothing_is_trained():
    assert "GRAFTLINE_RUNNER" in read(GITHUB / "train-on-drop.yml")["jobs"]["train"]["if"]
    for job in ("train-on-drop", "train-again"):
        first = read(GITLAB)[job]["rules"][0]
        assert "GRAFTLINE_RUNNER" in first["if"]
        assert first["when"] == "never"


def test_ci_runs_what_the_repository_says():
    assert ".ci/run" in scripts().values()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_patterns_of_changed_files_match_code_and_configuration():
    patterns = read(GITHUB / "train-on-drop.yml")["on"]["push"]["paths"]
    # GitHub's ** crosses folders, its * does not.
    expressions = [
        re.compile(re.escape(one).replace(r"\*\*/", "(.*/)?").replace(r"\*\*", ".*"))
        for one in patterns
    ]

    def matches(name: str) -> bool:
        return any(expression.fullmatch(name) for expression in expressions)

    for name in ("pipeline/config.py", "graftline.yaml", "a/graftline.yaml", "schema/schema.pbtxt"):
        assert matches(name)
    assert not matches("docs/drops.md")
    assert shutil.which("bash")


@pytest.mark.parametrize("kubectl", [True, False])
@pytest.mark.parametrize(
    ("user", "sudo", "installs"), [(0, False, True), (1000, True, True), (1000, False, False)]
)
def test_ci_installs_its_tools_as_root_or_where_sudo_asks_for_no_password(
    tmp_path, user, sudo, installs, kubectl
):
    said = tmp_path / "said"
    scripts = {
        "bin/id": f"echo {user}",
        "bin/sudo": f'echo sudo >>{said}; shift; {"exec" if sudo else "false"} "$@"',
        "bin/apt-get": f'echo "apt-get $1 as $DEBIAN_FRONTEND" >>{said}',
        "bin/dpkg": "exit 1",
        "bin/make": "exit 0",
        "requirements/debian13.sh": "exit 1",
    }
    if kubectl:
        scripts["bin/kubectl"] = "exit 0"
    for name, script in scripts.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        path.chmod(0o755)
    # Nothing else is to be found, so that it does not matter what this machine has.
    for name in ("bash", "dirname", "env", "true"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env={"PATH": str(tmp_path / "bin")}, check=False
    )
    assert done.returncode == 0
    lines = said.read_text().splitlines() if said.exists() else []
    assert ("sudo" in lines) == (user != 0)
    update, install = (f"apt-get {one} as noninteractive" for one in ("update", "install"))
    expected = [update, install, install] + ([] if kubectl else [update, install])
    assert [line for line in lines if line != "sudo"] == (expected if installs else [])
