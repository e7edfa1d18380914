"""The section `kubeflow`: what a step gets, and what is refused."""

from pathlib import Path

import pytest

from graftline.pipeline.config import Config, load_config, write_config
from graftline.serving.errors import UserError


def load(folder: Path, *overrides: str) -> Config:
    (folder / "graftline.yaml").write_text("")
    return load_config(folder / "graftline.yaml", overrides)


def test_a_step_gets_its_own_and_for_the_rest_the_defaults(tmp_path):
    config = load(
        tmp_path,
        "kubeflow.defaults.memory=2G",
        "kubeflow.defaults.retries=5",
        "kubeflow.steps.Trainer={memory: 16G, accelerator: nvidia.com/gpu, accelerators: 1}",
    )
    trainer, other = config.kubeflow.step("Trainer"), config.kubeflow.step("Transform")
    assert (trainer.memory, trainer.accelerators, trainer.retries) == ("16G", 1, 5)
    assert (other.memory, other.accelerators, other.retries) == ("2G", None, 5)


def test_a_configuration_with_steps_is_written_and_read_again(tmp_path):
    config = load(tmp_path, "kubeflow.steps.Trainer.tolerations=[{key: gpu, value: big}]")
    write_config(config, tmp_path / "written.yaml")
    assert load_config(tmp_path / "written.yaml") == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("kubeflow.project=/elsewhere", ["/elsewhere lies on none", "/graftline"]),
        ("kubeflow.project=project", ["kubeflow.project", "regex"]),
        ("kubeflow.steps.Trainer.memory=lots", ["kubeflow.steps", "memory"]),
        ("kubeflow.steps.Trainer.gpu=1", ["gpu is not a known key", "accelerators"]),
        ("kubeflow.defaults.annotations={'two words': x}", ["kubeflow.defaults.annotations"]),
        ("kubeflow.image='two words'", ["kubeflow.image"]),
        ("kubeflow.metadata.database=a;b", ["kubeflow.metadata.database"]),
        ("kubeflow.secrets=[{name: mail, env: {a-b: c}}]", ["kubeflow.secrets"]),
        ("kubeflow.volumes=[{claim: a, path: /graftline}, {claim: b, path: /graftline}]", ["same"]),
    ],
)
def test_what_no_cluster_could_use_is_refused_with_its_key(tmp_path, override, words):
    with pytest.raises(UserError) as refused:
        load(tmp_path, override)
    assert not [word for word in words if word not in str(refused.value)], str(refused.value)
