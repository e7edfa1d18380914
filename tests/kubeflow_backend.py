"""Executes a compiled package as the backend of Kubeflow Pipelines would, without a cluster.

The SDK's own local runner cannot: it runs container components in Docker only. This one reads the
two documents of a package and nothing else: order, conditions, parameters, the run's id, retries,
the step that runs whatever happened, volumes and secrets. Every container's command runs in a
process of its own with the environment that its pod would have, steps that wait for nothing of each
other at the same time. What it does not know it refuses.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from commands import Command

SUCCEEDED, FAILED, SKIPPED, OMITTED = "SUCCEEDED", "FAILED", "SKIPPED", "OMITTED"

_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}")
_OUTPUT = re.compile(r"\{\{\$\.outputs\.parameters\['(.+?)'\]\.output_file\}\}")
_CONDITION = re.compile(r"inputs\.parameter_values\['(.+?)'\]\s+==\s+'(.*)'")
_JOB_ID = "{{$.pipeline_job_uuid}}"
_WHATEVER_HAPPENED = "ALL_UPSTREAM_TASKS_COMPLETED"
_TYPES = {"NUMBER_INTEGER": int, "STRING": str, "BOOLEAN": bool, "LIST": list}
_MODULE = "graftline.kubeflow.node"
# Steps that import no TFX are executed as they stand. The others' processes fork from one that has
# imported it already, half a minute less each; `make test-kubeflow` executes these as they stand,
# too, but for tries that are to be stopped in the middle.
_LIGHT = ("end", "refused")
EXACT_VARIABLE = "GRAFTLINE_TEST_EXACT_COMMANDS"


@dataclass
class Step:
    """One step of a run: how it ended, and what each try of it printed and ended with."""

    state: str
    codes: list[int] = field(default_factory=list)
    output: str = ""
    commands: list[list[str]] = field(default_factory=list)


@dataclass
class KubeflowRun:
    """One run of a package."""

    id: str
    state: str = ""
    steps: dict[str, Step] = field(default_factory=dict)

    def states(self, *names: str) -> list[str]:
        """How steps ended; those that were never reached are SKIPPED."""
        return [self.steps[name].state if name in self.steps else SKIPPED for name in names]


class RefusedRun(ValueError):
    """What the API server would not start."""


class Backend:
    """Kubeflow Pipelines, with one package.

    Args:
        folder: for what it writes itself.
        secrets: values of the secrets of its namespace.
        image: environment of the steps' image.
    """

    def __init__(
        self,
        folder: Path,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        image: Mapping[str, str] | None = None,
    ):
        self._folder = folder
        self._secrets = secrets or {}
        self._image = dict(image or {})

    def upload(self, package: Path) -> None:
        """Takes the package whose runs are started from now on."""
        documents = list(yaml.safe_load_all(package.read_text()))
        self._spec = documents[0]
        assert self._spec["schemaVersion"] == "2.1.0"
        self._platform = documents[1]["platforms"]["kubernetes"] if documents[1:] else {}

    def run(
        self,
        arguments: Mapping[str, Any] | None = None,
        *,
        killed: Mapping[str, int] | None = None,
        before: Mapping[str, Callable[[int], None]] | None = None,
        during: Mapping[str, Callable[[], None]] | None = None,
        run_id: str = "",
    ) -> KubeflowRun:
        """Runs the package to its end.

        Args:
            arguments: parameters of the run.
            killed: steps whose first try gets a signal once its node has done its work.
            before: functions that are called before a try of a step, with the number of the try.
            during: functions that are called in the middle of a step's first try, once its node
                has done its work.
            run_id: of the run; a new one by default.

        Raises:
            RefusedRun: a parameter is unknown or of the wrong type.
        """
        found = KubeflowRun(id=run_id or str(uuid.uuid4()))
        self._killed, self._before = dict(killed or {}), dict(before or {})
        self._during = dict(during or {})
        root = self._spec["root"]
        values = self._parameters(root.get("inputDefinitions", {}), dict(arguments or {}))
        state, _ = self._dag(root, values, found)
        found.state = state
        return found

    def _parameters(self, defined: Any, given: dict[str, Any]) -> dict[str, Any]:
        declared = defined.get("parameters", {})
        for name, value in given.items():
            if name not in declared:
                raise RefusedRun(f"the pipeline has no parameter {name}")
            wanted = _TYPES[declared[name]["parameterType"]]
            if isinstance(value, float) and value.is_integer():
                value = int(value)  # protobuf knows one kind of number
            if type(value) is not wanted:
                raise RefusedRun(f"parameter {name} must be {wanted.__name__}, found {value!r}")
        missing = [
            name
            for name, one in declared.items()
            if name not in given and "defaultValue" not in one and not one.get("isOptional")
        ]
        assert not missing, missing
        return {name: given.get(name, one.get("defaultValue")) for name, one in declared.items()}

    def _dag(
        self, component: Any, inputs: dict[str, Any], run: KubeflowRun
    ) -> tuple[str, dict[str, dict[str, Any]]]:
        """Runs the tasks of one level: each once those that it waits for have succeeded."""
        tasks = dict(component["dag"]["tasks"])
        last = {
            name: tasks.pop(name)
            for name, task in list(tasks.items())
            if task.get("triggerPolicy", {}).get("strategy") == _WHATEVER_HAPPENED
        }
        waits_for = {name: _upstream(task) for name, task in tasks.items()}
        assert all(before <= set(tasks) for before in waits_for.values()), waits_for
        states: dict[str, str] = {}
        outputs: dict[str, dict[str, Any]] = {}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            under_way: dict[concurrent.futures.Future, str] = {}
            while len(states) < len(tasks):
                for name in tasks.keys() - states.keys() - set(under_way.values()):
                    if waits_for[name] <= states.keys():
                        if any(states[before] != SUCCEEDED for before in waits_for[name]):
                            states[name] = OMITTED
                            continue
                        going = pool.submit(self._task, tasks[name], inputs, outputs, run)
                        under_way[going] = name
                done, _ = concurrent.futures.wait(
                    under_way, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for one in done:
                    name = under_way.pop(one)
                    states[name], outputs[name] = one.result()
        for task in last.values():  # an Argo hook: what becomes of it changes nothing
            self._task(task, inputs, outputs, run)
        return (FAILED if FAILED in states.values() else SUCCEEDED), outputs

    def _task(
        self,
        task: Any,
        inputs: dict[str, Any],
        outputs: dict[str, dict[str, Any]],
        run: KubeflowRun,
    ) -> tuple[str, dict[str, Any]]:
        values = {
            name: self._value(source, inputs, outputs, run)
            for name, source in task.get("inputs", {}).get("parameters", {}).items()
        }
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition is not None:
            [(name, wanted)] = _CONDITION.findall(condition)
            if values[name] != wanted:
                return SKIPPED, {}
        component = self._spec["components"][task["componentRef"]["name"]]
        if "dag" in component:
            state, _ = self._dag(component, values, run)
            return state, {}
        assert not task["cachingOptions"].get("enableCache"), "TFX has its own cache"
        values = self._parameters(component.get("inputDefinitions", {}), values)
        return self._container(task, component, values, run)

    def _value(
        self, source: Any, inputs: dict[str, Any], outputs: dict[str, Any], run: KubeflowRun
    ) -> Any:
        if "componentInputParameter" in source:
            return inputs[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            of = source["taskOutputParameter"]
            return outputs[of["producerTask"]][of["outputParameterKey"]]
        constant = source["runtimeValue"]["constant"]
        return run.id if constant == _JOB_ID else constant

    def _container(
        self, task: Any, component: Any, values: dict[str, Any], run: KubeflowRun
    ) -> tuple[str, dict[str, Any]]:
        label = component["executorLabel"]
        container = self._spec["deploymentSpec"]["executors"][label]["container"]
        extras = self._platform.get("deploymentSpec", {}).get("executors", {}).get(label, {})
        name = task["taskInfo"]["name"]
        environment = self._environment(container, extras)
        for volume in extras.get("pvcMount", ()):
            assert Path(volume["mountPath"]).is_dir(), "such a volume cannot be mounted here"
        step = run.steps.setdefault(name, Step(FAILED))
        for attempt in range(1 + task.get("retryPolicy", {}).get("maxRetryCount", 0)):
            if name in self._before:
                self._before[name](attempt)
            with tempfile.TemporaryDirectory(dir=self._folder) as pod:
                files = {
                    one: Path(pod) / "outputs" / one
                    for one in component.get("outputDefinitions", {}).get("parameters", {})
                }
                command = [
                    _filled(part, values, files)
                    for part in (*container["command"], *container["args"])
                ]
                step.commands.append(command)
                signalled, during = self._killed.pop(name, 0), self._during.pop(name, None)
                code, output = _execute(command, Path(pod), environment, name, signalled, during)
                step.codes.append(code)
                step.output += output
                if code == 0:
                    step.state = SUCCEEDED
                    return SUCCEEDED, {one: file.read_text() for one, file in files.items()}
        return FAILED, {}

    def _environment(self, container: Any, extras: Any) -> dict[str, str]:
        found = {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin")),
            "HOME": str(self._folder),
            **self._image,
        }
        found |= {one["name"]: one["value"] for one in container.get("env", ())}
        for secret in extras.get("secretAsEnv", ()):
            for entry in secret["keyToEnv"]:
                found[entry["envVar"]] = self._secrets[secret["secretName"]][entry["secretKey"]]
        return found


def _upstream(task: Any) -> set[str]:
    producers = {
        source["taskOutputParameter"]["producerTask"]
        for source in task.get("inputs", {}).get("parameters", {}).values()
        if "taskOutputParameter" in source
    }
    return {*task.get("dependentTasks", ()), *producers}


def _filled(part: str, values: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    part = _INPUT.sub(lambda found: _text(values[found[1]]), part)
    part = _OUTPUT.sub(lambda found: str(files[found[1]]), part)
    assert "{{$" not in part, part
    return part


def _text(value: Any) -> str:
    """A parameter in a command, as the backend writes it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


_one_at_a_time = threading.Lock()


def _execute(
    command: list[str],
    pod: Path,
    environment: Mapping[str, str],
    name: str,
    signalled: int,
    during: Callable[[], None] | None,
) -> tuple[int, str]:
    assert command[:3] == ["python", "-m", _MODULE]
    halts = bool(signalled or during)
    if command[3] in _LIGHT or (EXACT_VARIABLE in os.environ and not halts):
        ended = subprocess.run(
            command,
            cwd=pod,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return ended.returncode, ended.stdout
    workplace = pod / "work"
    workplace.mkdir()
    with _one_at_a_time:
        going = Command(
            workplace,
            *command[3:],
            halt_in=name if halts else "",
            environment=environment,
            nothing_else=True,
            module=_MODULE,
        )
    if during:
        going.wait_halted()
        during()
        going.go_on()
    code = going.kill(signalled) if signalled else going.wait()
    return code, going.output


KILL, TERMINATE = signal.SIGKILL, signal.SIGTERM
