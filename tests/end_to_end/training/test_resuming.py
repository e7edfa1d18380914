"""A training that was cut off: where it goes on, and with what result."""

from pathlib import Path

import pytest

from graftline.components import progress
from graftline.components.trainer.record import TrainingRecord
from small_training import Train

pytestmark = pytest.mark.end_to_end


class CutOff(Exception):
    """Stands for whatever ends a process."""


def cut_off_at(line: str, train: Train, folder: Path, **settings: object) -> list[str]:
    """Trains until a line of progress appears; returns the lines up to there."""
    lines: list[str] = []

    def listen(text: str) -> None:
        lines.append(text)
        if text.startswith(line):
            raise CutOff

    progress.listen(listen)
    try:
        with pytest.raises(CutOff):
            train(folder, None, folder.parent / "features", **settings)
    finally:
        progress.listen(None)
    return lines


LONG = [
    {"name": "frozen", "epochs": 4, "rate": 0.02},
    {"name": "fine_tune", "epochs": 3, "rate": 1e-3, "fraction": 0.5, "schedule": "cosine"},
]


# From stored features, and from the images, with everything that is drawn at random.
TRAININGS: dict[str, dict[str, object]] = {
    "features": {"phases": LONG},
    "images": {
        "phases": [{**phase, "fraction": 1.0} for phase in LONG],
        "augmentation": {"flip": "horizontal", "rotation": 20, "mixup": 0.2},
        "imbalance": "resample",
    },
}


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory) -> dict[str, TrainingRecord]:
    """The same trainings, cut off by nothing."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {
        name: train(folder / name, None, folder / "features", **settings)
        for name, settings in TRAININGS.items()
    }


@pytest.mark.parametrize(
    ("reads", "line"),
    [
        ("features", "frozen 3/4"),
        ("features", "fine_tune 1/3"),
        ("features", "fine_tune 2/3"),
        ("images", "fine_tune 2/3"),
    ],
)
def test_a_training_that_was_cut_off_ends_where_it_would_have_ended(
    train, undisturbed, tmp_path, reads, line
):
    # The line of an epoch is shown before its weights are kept.
    cut_off_at(line, train, tmp_path / "1", **TRAININGS[reads])
    lines: list[str] = []
    progress.listen(lines.append)
    record = train(tmp_path / "2", None, tmp_path / "features", **TRAININGS[reads])
    progress.listen(None)

    name, number = line.split()[0], int(line.split()[1].partition("/")[0])
    shown = [text for text in lines if text.startswith(name) and "accuracy" in text]
    assert shown[0].startswith(f"{name} {number}/")
    for phase, other in zip(record.phases, undisturbed[reads].phases, strict=True):
        errors = [[epoch.eval_brier for epoch in one.epochs] for one in (phase, other)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_another_seed_is_another_training(train, undisturbed, tmp_path):
    other = train(tmp_path, **TRAININGS["features"], seed=1).exported.eval_brier
    assert other != pytest.approx(undisturbed["features"].exported.eval_brier, rel=1e-3)


def goes_on(train: Train, folder: Path, **settings: object) -> bool:
    """Whether a training takes up what another one has left."""
    lines: list[str] = []
    progress.listen(lines.append)
    train(folder, None, folder.parent / "features", phases=LONG, **settings)
    progress.listen(None)
    return any("goes on after" in line for line in lines)


@pytest.mark.parametrize("changed", [{"seed": 7}, {"code": "other"}, {"weights_digest": "other"}])
def test_what_follows_from_anything_else_begins_anew(train, tmp_path, changed):
    cut_off_at("frozen 3/4", train, tmp_path / "1", phases=LONG)
    assert not goes_on(train, tmp_path / "2", **changed)


def test_a_training_that_came_to_its_end_begins_anew_and_leaves_no_checkpoint(train, tmp_path):
    assert not goes_on(train, tmp_path / "1")
    assert not goes_on(train, tmp_path / "2")
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("left", [0, 100])
def test_a_checkpoint_that_the_disk_has_torn_is_a_beginning(train, tmp_path, left):
    cut_off_at("frozen 3/4", train, tmp_path / "1", phases=LONG)
    [checkpoint] = (tmp_path / "checkpoints").glob("*/state.npz")
    checkpoint.write_bytes(checkpoint.read_bytes()[:left])
    assert not goes_on(train, tmp_path / "2")
