"""Objects of custom resources, held against the definitions that their projects publish."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from custom_resources import check
from deployment import MANIFESTS, kustomized, named
from graftline.kubeflow import training_job
from graftline.pipeline.kubeflow_config import KubeflowConfig

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    objects = kustomized(MANIFESTS / "overlays/production")
    [found] = named(objects, "FlinkDeployment").values()
    return found


def test_the_flink_cluster_fits_its_definition(cluster):
    check(cluster)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("flinkVersion",), "v1_99", "v1_99"),
        (("taskManager", "slots"), 2, "slots"),
        (("taskManager", "resource", "memory"), 4096, "4096 is not of type 'string'"),
        (("taskManager", "podTemplate", "spec", "containers", 1, "livenesProbe"), {}, "livenes"),
    ],
)
def test_a_cluster_that_the_operator_would_refuse_does_not_fit(cluster, path, value, words):
    wrong = copy.deepcopy(cluster)
    *parents, last = path
    place = wrong["spec"]
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises(ValueError, match=words):
        check(wrong)


def test_the_job_of_several_pods_fits_its_definition():
    config = KubeflowConfig(image="graftline:0.1.0", training_pods=3)
    job = training_job.manifest(config, "graftline-flowers-1", ["run"], ["work"])
    check(job)
    job["spec"]["tfReplicaSpecs"]["Worker"]["restart"] = "Never"
    with pytest.raises(ValueError, match="restart"):
        check(job)
