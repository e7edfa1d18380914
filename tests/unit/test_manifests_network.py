"""Who reaches whom in kubeflow/manifests, by its network policies."""

from __future__ import annotations

from typing import Any

import pytest

from deployment import MANIFESTS, all_pods, kustomized, named, with_components


@pytest.fixture(scope="module")
def production() -> list[dict[str, Any]]:
    return kustomized(MANIFESTS / "overlays/production")


def _allowed(objects: list[dict[str, Any]], pod: dict[str, str]) -> set[str]:
    """Which of our pods may reach one that has these labels."""
    reached = set()
    for policy in named(objects, "NetworkPolicy").values():
        spec = policy["spec"]
        if "Ingress" in spec["policyTypes"] and _selects(spec["podSelector"], pod):
            for rule in spec.get("ingress", []):
                for source in rule.get("from", []):
                    for name, labels in _labels(objects).items():
                        if "podSelector" in source and _selects(source["podSelector"], labels):
                            reached.add(name)
    return reached


def _labels(objects: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    return {
        "step": {"workflows.argoproj.io/workflow": "flowers-x"},
        "worker": {"training.kubeflow.org/operator-name": "tfjob-controller"},
        **{name: template["metadata"]["labels"] for name, template in all_pods(objects).items()},
    }


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    matches = selector.get("matchLabels", {}).items() <= labels.items()
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        matches &= value in expression["values"] if "values" in expression else value is not None
    return matches


def test_nobody_is_reached_but_by_a_policy(production):
    policies = named(production, "NetworkPolicy")
    assert policies["graftline-default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    labels = _labels(production)
    assert {name: _allowed(production, labels[name]) for name in labels if "graftline" in name} == {
        "graftline-metadata": {
            "step",
            "worker",
            "graftline-metadata-backup",
            "graftline-workbench",
        },
        "graftline-metadata-backup": set(),
        "graftline-watch": set(),
        "graftline-workbench": set(),
        "graftline-beam-jobs": {"step", "graftline-watch", "graftline-workbench"},
        "graftline-flink": {"graftline-flink", "graftline-beam-jobs"},
    }
    assert _allowed(production, labels["step"]) == set()
    assert _allowed(production, labels["worker"]) == {"worker"}


@pytest.mark.parametrize(
    ("who", "whom", "port"),
    [
        ("step", "graftline-metadata", 3306),
        ("step", "graftline-beam-jobs", 8099),
        ("step", "graftline-beam-jobs", 8098),
        ("graftline-watch", "graftline-beam-jobs", 8099),
        ("graftline-watch", "graftline-beam-jobs", 8098),
        ("graftline-workbench", "graftline-beam-jobs", 8099),
        ("graftline-workbench", "graftline-beam-jobs", 8098),
        ("step", "tensorflow-serving", 8500),
        ("graftline-workbench", "tensorflow-serving", 8501),
        ("worker", "graftline-metadata", 3306),
        ("graftline-beam-jobs", "graftline-flink", 8081),
        ("graftline-metadata-backup", "graftline-metadata", 3306),
        ("graftline-workbench", "graftline-metadata", 3306),
    ],
)
def test_who_is_let_in_is_let_out_as_well(production, who, whom, port):
    labels = _labels(production)
    assert who in _allowed(production, labels[whom])
    rules = [
        rule
        for policy in named(production, "NetworkPolicy").values()
        if "Egress" in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], labels[who])
        for rule in policy["spec"].get("egress", [])
    ]
    assert any(
        _selects(target["podSelector"], labels[whom])
        and ("ports" not in rule or {"port": port} in rule["ports"])
        for rule in rules
        for target in rule.get("to", [])
        if "podSelector" in target and "namespaceSelector" not in target
    )


@pytest.mark.parametrize("who", ["step", "worker"])
def test_where_nobody_is_let_out_a_bucket_is_reached_with_a_component_of_its_own(tmp_path, who):
    def reached(*components: str) -> set[tuple[str, int]]:
        objects = with_components(tmp_path, "isolation", "training-operator", *components)
        rules = [
            rule
            for policy in named(objects, "NetworkPolicy").values()
            if _selects(policy["spec"]["podSelector"], _labels(objects)[who])
            for rule in policy["spec"].get("egress", [])
        ]
        return {
            (target["ipBlock"]["cidr"], port["port"])
            for rule in rules
            for target in rule.get("to", [])
            if "ipBlock" in target
            for port in rule["ports"]
        }

    assert reached() == set()
    metadata_server = {("169.254.169.254/32", 80), ("169.254.169.252/32", 988)}
    assert reached("bucket", "bucket-isolation") == metadata_server
