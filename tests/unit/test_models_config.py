"""`models.config` as a file: what is written, what is understood, whose entries stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from graftline.serving.base_path import BasePath
from graftline.serving.config import ServingConfig
from graftline.serving.errors import UserError
from graftline.serving.manifest import Manifest
from graftline.serving.models_config import Choice, ModelsConfig
from graftline.serving.switching import Switchboard

OTHER = """
model_config_list {
  config { name: "fruit" base_path: "/elsewhere/fruit" model_platform: "tensorflow"
           version_labels { key: "stable" value: 7 } }
}
"""


@pytest.fixture
def base_path(tmp_path: Path) -> BasePath:
    """Versions 1, 2 and 3 of a model."""
    base_path = BasePath(tmp_path / "serving" / "flowers")
    for number in (1, 2, 3):
        trained = tmp_path / "trained" / str(number)
        trained.mkdir(parents=True)
        (trained / "saved_model.pb").write_bytes(b"graph")
        base_path.publish(trained, Manifest(model="flowers", model_id=str(number)))
    return base_path


@pytest.fixture
def board(base_path: BasePath) -> Switchboard:
    """Commands with an entry written, and nobody to wait for."""
    board = Switchboard(base_path, ServingConfig(), wait=False)
    board.write()
    return board


def parsed(path: Path) -> model_server_config_pb2.ModelServerConfig:
    return text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())


def test_what_was_written_is_read(tmp_path):
    config = ModelsConfig(tmp_path / "flowers")
    assert config.read() is None
    choice = Choice((2, 3), {"stable": 2, "canary": 3})
    config.replace(choice)
    assert config.read() == choice
    config.replace(Choice())
    assert config.read() == Choice()


def test_servers_find_the_model_where_they_see_it(tmp_path):
    ModelsConfig(tmp_path / "flowers", mounted_at="/models/").replace(Choice())
    [entry] = parsed(tmp_path / "models.config").model_config_list.config
    assert (entry.name, entry.base_path, entry.model_platform) == (
        "flowers",
        "/models/flowers",
        "tensorflow",
    )


def test_entries_of_other_models_stay_as_they_are(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(OTHER)
    [before] = parsed(path).model_config_list.config
    ModelsConfig(tmp_path / "flowers").replace(Choice((1,)))
    after = {entry.name: entry for entry in parsed(path).model_config_list.config}
    assert set(after) == {"fruit", "flowers"}
    assert after["fruit"] == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_config_list {", "does not parse"),
        ('model_config_list { config { nom: "flowers" } }', "does not parse"),
        ("\0\xff", "does not parse"),
        (OTHER.replace("}\n}", "} config { name: 'fruit' } }"), "fruit more than once"),
        ("custom_model_config {}", "custom_model_config"),
    ],
)
def test_a_file_that_servers_would_not_take_is_named_and_left_alone(tmp_path, text, said):
    path = tmp_path / "models.config"
    path.write_text(text)
    config = ModelsConfig(tmp_path / "flowers")
    for attempt in (config.read, lambda: config.replace(Choice())):
        with pytest.raises(UserError, match=said) as error:
            attempt()
        assert str(path) in str(error.value)
    assert path.read_text() == text


def test_a_policy_under_which_several_versions_serve_is_not_guessed_at(base_path, board):
    path = base_path.root.parent / "models.config"
    path.write_text(path.read_text().replace("num_versions: 1", "num_versions: 2"))
    with pytest.raises(UserError, match=r"version policy `latest`.*serve-config"):
        base_path.in_service()
    board.write()
    assert base_path.in_service() == 3


def test_a_pinned_version_is_in_service_whatever_is_published_later(base_path, board, tmp_path):
    board.pin(2, "until monday")
    assert base_path.in_service() == 2
    assert base_path.folder() == base_path.root / "2"
    base_path.publish(tmp_path / "trained" / "1", Manifest(model="flowers", model_id="4"))
    assert base_path.in_service() == 2
    event = base_path.history()[1 + 2]
    assert (event.what, event.version, event.reason) == ("pinned", 2, "until monday")
    board.unpin()
    assert base_path.in_service() == 4


def test_a_version_that_is_asked_for_is_not_taken_away(base_path, board):
    board.promote(3)
    board.canary(1, 10)
    for number in (1, 3):
        with pytest.raises(UserError, match=f"told to serve version {number} .*graftline promote"):
            base_path.withdraw(number)
    with pytest.raises(UserError, match="told to serve version 3"):
        base_path.rollback(2)
    assert [v.state for v in base_path.versions()] == ["present", "present", "in service"]


def test_promoting_the_canary_ends_it(base_path, board):
    board.promote(1)
    board.canary(2, 25)
    assert base_path.in_service() == 1
    board.promote(2)
    choice = ModelsConfig(base_path.root).read()
    assert choice == Choice((2,), {"stable": 2})
    assert base_path.in_service() == 2


def test_a_pin_beside_labels_is_refused(base_path, board):
    board.promote(2)
    with pytest.raises(UserError, match="label stable is in use"):
        board.pin(1)
    assert base_path.in_service() == 2


def test_going_back_moves_what_servers_are_told_and_ends_the_canary(base_path, board):
    board.promote(2)
    board.canary(3, 50)
    board.rollback()
    assert ModelsConfig(base_path.root).read() == Choice((1,), {"stable": 1})
    assert [v.state for v in base_path.versions()] == ["in service", "withdrawn", "withdrawn"]


def test_going_back_to_a_withdrawn_version_restores_it(base_path, board):
    board.rollback(2)  # nothing is held yet: the base path alone
    board.promote(1)
    board.rollback(3)
    assert base_path.in_service() == 3
    assert [v.state for v in base_path.versions()] == ["present", "present", "in service"]


@pytest.mark.parametrize("number", [3, 9])
def test_what_is_withdrawn_or_not_there_is_not_served(base_path, board, number):
    base_path.withdraw(3)
    for change in (board.pin, board.promote, lambda number: board.canary(number, 5)):
        with pytest.raises(UserError, match=rf"(V|v)ersion {number}"):
            change(number)
    assert ModelsConfig(base_path.root).read() == Choice()


def test_labels_are_not_moved_where_nobody_can_be_asked(base_path, board):
    waiting = Switchboard(base_path, ServingConfig())
    with pytest.raises(UserError, match=r"serving\.servers names none"):
        waiting.promote(2)
    assert ModelsConfig(base_path.root).read() == Choice()


@pytest.mark.parametrize("hold", ["pin", "promote"])
def test_going_back_from_a_held_version_is_refused_where_nobody_can_be_asked(
    base_path, board, hold
):
    getattr(board, hold)(3)
    before = ModelsConfig(base_path.root).read(), base_path.versions()
    with pytest.raises(UserError, match=r"serving\.servers names none"):
        Switchboard(base_path, ServingConfig()).rollback()
    assert (ModelsConfig(base_path.root).read(), base_path.versions()) == before


def test_without_an_entry_the_way_to_one_is_told(base_path):
    with pytest.raises(UserError, match="graftline serve-config"):
        Switchboard(base_path, ServingConfig()).pin(1)


def test_a_disk_that_is_full_leaves_everything_as_it_was(base_path, board, monkeypatch):
    board.promote(2)
    before = (base_path.root.parent / "models.config").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graftline.serving.models_config.write", full)
    with pytest.raises(UserError, match="No space left"):
        board.promote(3)
    assert (base_path.root.parent / "models.config").read_bytes() == before
    assert base_path.in_service() == 2
