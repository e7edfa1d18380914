"""The space that tuning searches: what may be tried, and how values get into the configuration."""

import pytest

from graftline.components.trainer.config import PhaseConfig, TrainerConfig
from graftline.components.tuner import space
from graftline.components.tuner.config import Range, TunerConfig
from graftline.serving.errors import UserError

TRAINER = TrainerConfig()


def test_the_default_space_fits_the_default_training():
    space.check(TRAINER, TunerConfig().space)


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("head.dropot", [0.1, 0.2], "tuner.space.head.dropot: .*unknown field `dropot`"),
        ("phases.thawed.rate", [1e-3, 1e-2], "there is no thawed; there are frozen, fine_tune"),
        ("head.dropout", Range(min=0.0, max=2.0), "tuner.space.head.dropout: 2.0 .* < 1.0"),
        ("head.dropout", [0.1, "much"], "'much' cannot be tried"),
        ("batch_size", Range(min=8, max=16.5), "16.5 cannot be tried"),
        ("head", [1, 2], "tuner.space.head: 1 cannot be tried"),
        ("head.dropout.more", [1, 2], "dropout is a value, not a section"),
        ("backbone", ["efficientnet_lite0", "efficientnet_lite1"], "prepared for one network"),
        ("workers", [1, 2], "not what is learned"),
        ("tensorboard.embedding", [10, 20], "not what is learned"),
        ("warm_start", [True, False], "start from the same weights"),
        ("seed", [1, 2], "luck"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_anything_runs(key, values, said):
    with pytest.raises(UserError, match=said):
        space.check(TRAINER, {key: values})


def test_an_empty_space_is_refused():
    with pytest.raises(UserError, match="nothing to try"):
        space.check(TRAINER, {})


def test_a_range_of_a_whole_number_gives_whole_numbers():
    found = space.hyperparameters(TRAINER, {"batch_size": Range(min=8, max=64)})
    [one] = found.space
    assert type(one).__name__ == "Int"
    assert (one.min_value, one.max_value, one.default) == (8, 64, 32)


def test_a_list_may_hold_anything():
    tried = {"head.hidden": [[], [256], [512, 128]]}
    found = space.hyperparameters(TRAINER, tried)
    drawn = [found.space[0].random_sample(seed) for seed in range(20)]
    values = [space.decoded(tried, {"head.hidden": one})["head.hidden"] for one in drawn]
    assert all(value in tried["head.hidden"] for value in values)
    config = space.with_values(TRAINER, {"head.hidden": [512, 128]})
    assert config.head.hidden == (512, 128)


def test_the_first_values_are_those_that_are_configured():
    tried = TunerConfig().space
    defaults = {one.name: one.default for one in space.hyperparameters(TRAINER, tried).space}
    assert space.with_values(TRAINER, space.decoded(tried, defaults)) == TRAINER


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("head.dropout", Range(min=0.3, max=0.6)),
        ("batch_size", Range(min=64, max=128)),
        ("head.hidden", [[64], [128]]),
    ],
)
def test_configured_values_outside_the_space_widen_it(key, values):
    [found] = space.hyperparameters(TRAINER, {key: values}).space
    first = space.decoded({key: values}, {key: found.default})
    assert space.with_values(TRAINER, first) == TRAINER
    assert 0 <= found.value_to_prob(found.default) <= 1


def test_a_configured_zero_cannot_be_tried_by_its_logarithm():
    with pytest.raises(UserError, match="weight_decay: the value as it is, 0, has no logarithm"):
        space.check(TRAINER, {"weight_decay": Range(min=1e-4, max=1e-2, log=True)})


def test_a_value_of_a_phase_is_set_by_the_name_of_the_phase():
    config = space.with_values(TRAINER, {"phases.fine_tune.rate": 0.01})
    assert [phase.rate for phase in config.phases] == [TRAINER.phases[0].rate, 0.01]


@pytest.mark.parametrize(
    ("key", "phases"),
    [("head.dropout", 1), ("phases.frozen.rate", 1), ("phases.fine_tune.rate", 2)],
)
def test_a_trial_trains_the_head_alone_unless_a_later_phase_is_tried(key, phases):
    assert space.last_phase(TRAINER, {key: [0.1, 0.2]}) == phases


def test_a_network_of_which_nothing_is_frozen_trains_its_first_phase():
    phases = tuple(
        PhaseConfig(name=name, epochs=2, rate=1e-3, fraction=1.0) for name in ("first", "second")
    )
    trainer = TrainerConfig(backbone="lenet5", weights="none", phases=phases)
    assert space.last_phase(trainer, {"head.dropout": [0.1, 0.2]}) == 1
