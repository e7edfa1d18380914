"""The configuration: one file, typed, with errors that say where, what and what is allowed."""

from pathlib import Path

import pytest

from graftline.pipeline.config import Config, PathsConfig, load_config, to_tree, write_config
from graftline.serving.errors import UserError


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "graftline.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def test_an_empty_file_means_the_defaults(tmp_path):
    assert load(tmp_path, "") == Config()


def test_the_commented_file_of_a_new_project_reads_back_as_what_was_written(tmp_path):
    path = tmp_path / "graftline.yaml"
    config = load(tmp_path, "model: {name: flowers}\nwindow: {last: 3}")
    write_config(config, path)
    assert load_config(path) == config


def test_the_commented_file_explains_every_key(tmp_path):
    path = tmp_path / "graftline.yaml"
    write_config(Config(), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    # What the space holds are values, keyed by the keys above them.
    values = tuple(f"    {key}:" for key in Config().tuner.space)
    keys = [
        i
        for i, line in enumerate(lines)
        if line.strip() and line.strip()[0] not in "#-" and not line.startswith(values)
    ]
    without_comment = [lines[i] for i in keys if not lines[i - 1].strip().startswith("#")]
    assert len(keys) > 30
    assert without_comment == []


def test_an_override_wins_over_the_file(tmp_path):
    config = load(tmp_path, "trainer: {batch_size: 8}", "trainer.batch_size=64", "window.last=2")
    assert (config.trainer.batch_size, config.window.last) == (64, 2)


def test_a_number_may_be_written_with_an_exponent(tmp_path):
    config = load(tmp_path, "trainer: {phases: [{name: a, epochs: 1, rate: 1e-4}]}")
    assert config.trainer.phases[0].rate == 1e-4


def test_an_override_reaches_into_a_list_by_name_and_leaves_the_rest_as_it_is(tmp_path):
    config = load(tmp_path, "", "trainer.phases.fine_tune.epochs=3")
    assert [phase.epochs for phase in config.trainer.phases] == [
        Config().trainer.phases[0].epochs,
        3,
    ]
    only = "trainer: {phases: [{name: a, epochs: 1, rate: 1e-4}]}"
    assert load(tmp_path, only, "trainer.phases.a.epochs=7").trainer.phases[0].epochs == 7


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.phases.fine.epochs=3", "there is no fine; there are frozen, fine_tune"),
        ("trainer.phases.frozen=3", "frozen is a section"),
        ("trainer.phases.frozen.epoch=3", "Did you mean epochs"),
    ],
)
def test_an_override_of_what_is_not_in_the_list_is_refused(tmp_path, override, said):
    with pytest.raises(UserError, match=said):
        load(tmp_path, "", override)


def test_images_too_small_for_the_backbone_are_refused(tmp_path):
    text = "trainer: {backbone: xception, weights: imagenet}\nimage: {size: 64}"
    with pytest.raises(UserError, match="takes images of 71 pixels and more"):
        load(tmp_path, text)


def test_the_plain_data_of_a_configuration_has_every_section():
    assert set(to_tree(Config())) == set(Config.__struct_fields__)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: {bach_size: 8}", ["trainer.bach_size", "Did you mean batch_size"]),
        ("trainr: {}", ["trainr", "Did you mean trainer", "Allowed here"]),
        ("trainer: {batch_size: many}", ["trainer.batch_size", "`int`", "'many'"]),
        ("trainer: {batch_size: 0}", ["trainer.batch_size", ">= 1", "found 0"]),
        ("image: {size: 22.5}", ["image.size", "22.5"]),
        ("window: {last: 0}", ["window.last", "found 0"]),
        ("model: {name: ../up}", ["model.name", "../up"]),
        ("trainer: 5", ["trainer", "found 5"]),
        ("- a list", ["sections"]),
        ("model: {name: a}\nmodel: {name: b}", ["not valid YAML", "stands twice"]),
        ("model: [", ["not valid YAML"]),
        ("{a: b}: c", ["not valid YAML", "a key must be a word"]),
        ("[a, b]: c", ["not valid YAML", "a key must be a word"]),
        (
            "model_gate: {bounds: [{metric: recall, slice: a, at_most: 1}]}",
            ["model_gate.bounds", "at_most", "Did you mean at_least"],
        ),
        (
            "model_gate: {bounds: [{metric: recall, slice: a, at_least: 7}]}",
            ["model_gate.bounds", "found 7"],
        ),
        ("trainer: {backbone: resnet50, weights: bundled}", ["trainer", "bundled"]),
    ],
)
def test_a_mistake_is_refused_with_path_finding_and_what_is_allowed(tmp_path, text, said):
    with pytest.raises(UserError) as refused:
        load(tmp_path, text)
    for part in said:
        assert part in str(refused.value)


def test_an_override_of_a_value_as_if_it_were_a_section_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a section"):
        load(tmp_path, "model: {name: a}", "model.name.first=b")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", PathsConfig.__struct_fields__)
def test_a_path_is_no_address_of_a_bucket_which_has_to_be_mounted(tmp_path, name):
    mounted = load(tmp_path, "", f"paths.{name}=/artifacts/gs:x")
    assert getattr(mounted.paths, name) == "/artifacts/gs:x"
    with pytest.raises(UserError) as refused:
        load(tmp_path, "", f"paths.{name}=gs://bucket/x")
    for part in ("paths", name, "'gs://bucket/x'", "mount the bucket", "docs/kubeflow.md"):
        assert part in str(refused.value)
    with pytest.raises(UserError, match="mount the bucket"):
        load(tmp_path, f"paths: {{{name}: 's3://bucket/x'}}")
