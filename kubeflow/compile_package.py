"""Writes a package of Kubeflow Pipelines from a graph: `compile_package.py OUTPUT < GRAPH`.

Runs in the environment of `requirements.lock`, which has the SDK and nothing of Graftline. The
graph is the JSON of `graftline.kubeflow.compile.Graph`.

    begin ── if there is something to do ── nodes ── gate ── if it passed ── nodes ── …
                                                          └─ if it refused ── refused (fails)
    end, whatever happened

A gate succeeds whether it passes or refuses, so that its no is not retried; what follows stands
under the condition that it passed, and is skipped without starting a pod. The step `refused`, which
is not retried, fails the run, for one that publishes nothing must not look like one that did.
"""

import json
import sys
from typing import Any

from kfp import compiler, dsl, kubernetes

COMMAND = ["python", "-m", "graftline.kubeflow.node"]


class Package:
    """Steps, made from a graph."""

    def __init__(self, graph: dict[str, Any]):
        self.graph = graph
        self.nodes = {node["id"]: node for node in graph["nodes"]}
        self.folders = ["--project", graph["project"], "--runs", graph["runs"]]

    def equip(self, task: Any, step: str, retried: bool = True) -> Any:
        """Gives a task its name, volumes, secrets, resources, place, retries and time."""
        graph, settings = self.graph, self.graph["steps"][step]
        task.set_display_name(step)
        # TFX has a cache of its own, which knows more of what a node depends on.
        task.set_caching_options(False)
        for volume in graph["volumes"]:
            kubernetes.mount_pvc(task, pvc_name=volume["claim"], mount_path=volume["path"])
        for secret in graph["secrets"]:
            keys = {key: variable for variable, key in secret["env"].items()}
            kubernetes.use_secret_as_env(task, secret["name"], keys)
        if graph["image_pull_secrets"]:
            kubernetes.set_image_pull_secrets(task, graph["image_pull_secrets"])
        if settings["cpu"]:
            task.set_cpu_request(settings["cpu"])
        if settings["cpu_limit"]:
            task.set_cpu_limit(settings["cpu_limit"])
        if settings["memory"]:
            task.set_memory_request(settings["memory"]).set_memory_limit(settings["memory"])
        if settings["accelerator"] and settings["accelerators"]:
            task.set_accelerator_type(settings["accelerator"])
            task.set_accelerator_limit(settings["accelerators"])
        for label, value in (settings["node_selector"] or {}).items():
            kubernetes.add_node_selector(task, label, value)
        for name, value in (settings["annotations"] or {}).items():
            kubernetes.add_pod_annotation(task, name, value)
        for toleration in settings["tolerations"] or []:
            kubernetes.add_toleration(
                task, **{name: value or None for name, value in toleration.items()}
            )
        if settings["retries"] and retried:
            wait = settings["retry_seconds"] or 1
            task.set_retry(
                settings["retries"],
                backoff_duration=f"{wait}s",
                backoff_factor=2,
                backoff_max_duration="3600s",
            )
        if settings["timeout_minutes"]:
            kubernetes.set_timeout(task, settings["timeout_minutes"] * 60)
        return task

    def begin(self) -> Any:
        """The first step, which decides what the run does."""
        graph, folders = self.graph, self.folders

        def begin(
            kubeflow_run: str,
            span: int,
            window: int,
            overrides: str,
            force: bool,
            accept_anomalies: bool,
            bless: bool,
            reason: str,
            run: dsl.OutputPath(str),  # type: ignore[valid-type]
            outcome: dsl.OutputPath(str),  # type: ignore[valid-type]
        ) -> dsl.ContainerSpec:
            given = {
                "--kubeflow-run": kubeflow_run,
                "--package": graph["package"],
                "--schema": graph["schema"],
                "--span": span,
                "--window": window,
                "--overrides": overrides,
                "--force": force,
                "--accept-anomalies": accept_anomalies,
                "--bless": bless,
                "--reason": reason,
                "--run-file": run,
                "--outcome-file": outcome,
            }
            args = ["begin", *folders, *(part for pair in given.items() for part in pair)]
            return dsl.ContainerSpec(image=graph["image"], command=COMMAND, args=args)

        return dsl.container_component(begin)

    def run(self, node: str) -> Any:
        """The step of one node."""
        image, folders = self.graph["image"], self.folders

        def run(
            run: str,
            outcome: dsl.OutputPath(str),  # type: ignore[valid-type]
        ) -> dsl.ContainerSpec:
            args = ["run", node, *folders, "--run", run, "--outcome-file", outcome]
            return dsl.ContainerSpec(image=image, command=COMMAND, args=args)

        run.__name__ = node
        return dsl.container_component(run)

    def refused(self) -> Any:
        """The step that fails a run which a gate stopped."""
        image, runs = self.graph["image"], self.graph["runs"]

        def refused(run: str) -> dsl.ContainerSpec:
            args = ["refused", "--runs", runs, "--run", run]
            return dsl.ContainerSpec(image=image, command=COMMAND, args=args)

        return dsl.container_component(refused)

    def end(self) -> Any:
        """The step that tells how the run came out."""
        image, folders = self.graph["image"], self.folders

        def end(kubeflow_run: str) -> dsl.ContainerSpec:
            args = ["end", *folders, "--kubeflow-run", kubeflow_run]
            return dsl.ContainerSpec(image=image, command=COMMAND, args=args)

        return dsl.container_component(end)

    def add_nodes(self, left: list[str], run: Any, tasks: dict[str, Any]) -> None:
        """Adds steps for nodes: those before the next gate here, the rest where it passed."""
        gates = [node for node in left if self.nodes[node]["gate"]]
        behind = self.behind(gates[0]) if gates else set()
        for node in left:
            if node not in behind:
                tasks[node] = self.equip(self.run(node)(run=run), node)
                tasks[node].after(*(tasks[before] for before in self.nodes[node]["upstream"]))
        if not gates:
            return
        found = tasks[gates[0]].outputs["outcome"]
        with dsl.If(found == "passed", name=f"{gates[0]}-passed"):
            self.add_nodes([node for node in left if node in behind], run, tasks)
        with dsl.If(found == "refused", name=f"{gates[0]}-refused"):
            self.equip(self.refused()(run=run), "refused", retried=False)

    def behind(self, gate: str) -> set[str]:
        """All nodes that wait for a gate, at first or second hand."""
        found = {gate}
        for node in self.graph["nodes"]:
            if found & set(node["upstream"]):
                found.add(node["id"])
        return found - {gate}

    def pipeline(self) -> Any:
        """The whole."""

        @dsl.pipeline(name=self.graph["name"])
        def pipeline(
            span: int = 0,
            window: int = 0,
            overrides: str = "[]",
            force: bool = False,
            accept_anomalies: bool = False,
            bless: bool = False,
            reason: str = "",
        ) -> None:
            run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
            end = self.equip(self.end()(kubeflow_run=run_id), "end")
            with dsl.ExitHandler(end, name="run"):
                begun = self.begin()(
                    kubeflow_run=run_id,
                    span=span,
                    window=window,
                    overrides=overrides,
                    force=force,
                    accept_anomalies=accept_anomalies,
                    bless=bless,
                    reason=reason,
                )
                self.equip(begun, "begin")
                with dsl.If(begun.outputs["outcome"] == "train", name="train"):
                    self.add_nodes(list(self.nodes), begun.outputs["run"], {})

        return pipeline


def main() -> None:
    """Reads the graph from standard input, writes the package."""
    package = Package(json.load(sys.stdin))
    compiler.Compiler().compile(package.pipeline(), package_path=sys.argv[1])


if __name__ == "__main__":
    main()
