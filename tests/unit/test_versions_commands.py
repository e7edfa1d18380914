"""The commands on versions as a user types them: what they print and how they exit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from graftline.pipeline.cli.main import main
from graftline.serving.base_path import BasePath
from graftline.serving.manifest import Manifest, Measure


@pytest.fixture
def base_path(tmp_path: Path) -> BasePath:
    """Versions 1, 2 and 3 of a project in the current folder."""
    (tmp_path / "graftline.yaml").write_text("model:\n  name: flowers\n")
    base_path = BasePath(tmp_path / "serving" / "flowers")
    for number in (1, 2, 3):
        trained = tmp_path / "trained" / str(number)
        trained.mkdir(parents=True)
        (trained / "saved_model.pb").write_bytes(b"graph")
        base_path.publish(trained, describe(number))
    return base_path


def describe(number: int) -> Manifest:
    accuracy = Measure(metric="accuracy", slice="overall", candidate=0.9 + number / 100)
    return Manifest(
        model="flowers",
        model_id=str(number),
        measures=(accuracy,),
        spans=tuple((span, 1) for span in range(1, number + 1)),
        run_id=f"run-000{number}",
    )


@pytest.fixture
def graftline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--project", str(tmp_path)])
        return end.value.code, *capsys.readouterr()

    return call


def test_versions_shows_each_with_its_state_accuracy_spans_and_run(base_path, graftline):
    base_path.withdraw(2, "too slow")
    code, output, _ = graftline("versions")
    rows = [line.split() for line in output.splitlines()]
    assert code == 0
    assert rows[2][:2] == ["1", "present"]
    assert rows[3][:2] == ["2", "withdrawn"]
    assert rows[4][:3] == ["3", "in", "service"]
    assert rows[4][7:] == ["1-3", "0.930", "run-0003"]
    assert output.splitlines()[5].endswith("2 withdrawn: too slow")
    assert rows[-1][:2] == ["Next:", "graftline"]


def test_versions_as_json_is_one_document(base_path, graftline):
    base_path.rollback(reason="worse on roses")
    code, output, _ = graftline("versions", "--json")
    document = json.loads(output)
    assert code == 0
    assert document["in_service"] == 2
    assert [v["state"] for v in document["versions"]] == ["present", "in service", "withdrawn"]
    assert document["versions"][0]["accuracy"] == 0.91
    assert document["versions"][0]["manifest"]["run_id"] == "run-0001"
    assert document["history"][-1]["reason"] == "worse on roses"


def test_an_incomplete_version_is_shown_with_what_to_do(base_path, graftline):
    (base_path.root / "4").mkdir()
    _, output, _ = graftline("versions")
    assert "incomplete" in output
    assert output.endswith("Next: graftline withdraw 4\n")
    assert graftline("withdraw", "4")[0] == 0


def test_before_the_first_run_every_command_names_it(tmp_path, graftline):
    (tmp_path / "graftline.yaml").write_text("model:\n  name: flowers\n")
    for command in ("versions", "verify"):
        code, output, _ = graftline(command)
        assert (code, "graftline run" in output) == (0, True)
    for arguments in (("rollback",), ("restore", "1"), ("predict", "rose.jpg")):
        code, _, errors = graftline(*arguments)
        assert (code, "graftline run" in errors) == (2, True)


def test_rollback_and_restore(base_path, graftline):
    code, output, _ = graftline("rollback", "--reason", "daisies")
    assert code == 0
    assert output == "Withdrawn: 3.\nIn service: version 2. Next: graftline versions\n"
    assert base_path.history()[-1].reason == "daisies"
    code, output, _ = graftline("restore", "3")
    assert code == 0
    assert output == "Restored: 3.\nIn service: version 3. Next: graftline versions\n"


def test_rollback_to_a_version_as_json(base_path, graftline):
    code, output, _ = graftline("rollback", "--to", "1", "--json")
    document = json.loads(output)
    assert (code, document["changed"], document["in_service"]) == (0, True, 1)
    assert document["event"]["withdrawn"] == [2, 3]
    assert json.loads(graftline("rollback", "--to", "1", "--json")[1])["changed"] is False


def test_going_where_one_is_already_says_so(base_path, graftline):
    for arguments in (("rollback", "--to", "3"), ("restore", "1")):
        code, output, _ = graftline(*arguments)
        assert (code, "nothing to do" in output) == (0, True)


def test_withdrawing_the_only_version_is_refused(base_path, graftline):
    base_path.rollback(1)
    code, _, errors = graftline("withdraw", "1")
    assert (code, "only one" in errors) == (2, True)


@pytest.mark.parametrize("version", ["../1", "1/..", "one", "", "1.0"])
def test_what_is_no_number_is_refused(base_path, graftline, version):
    assert graftline("restore", version)[0] == 2
    assert graftline("rollback", "--to", version)[0] == 2
    assert base_path.in_service() == 3


def test_verify_says_that_every_file_is_as_published(base_path, graftline):
    code, output, _ = graftline("verify")
    assert (code, "as it was published" in output) == (0, True)


def test_verify_names_damaged_files_and_exits_with_3(base_path, graftline):
    (base_path.root / "3" / "saved_model.pb").write_bytes(b"other")
    code, output, _ = graftline("verify", "3")
    assert code == 3
    assert [line.split() for line in output.splitlines()][1] == ["3", "saved_model.pb", "changed"]
    code, output, _ = graftline("verify", "--json")
    assert code == 3
    assert json.loads(output)["problems"] == {
        "1": [],
        "2": [],
        "3": [{"file": "saved_model.pb", "what": "changed"}],
    }


def test_file_names_are_printed_as_they_are(base_path, graftline):
    odd = f"[red]:smile:{'x' * 90}"
    (base_path.root / "3" / odd).write_bytes(b"")
    _, output, _ = graftline("verify", "3")
    assert odd in "".join(word for word in output.split() if word != "added")


def test_commands_on_versions_import_neither_tensorflow_nor_beam_nor_tfx(base_path, tmp_path):
    program = f"""
import sys
from graftline.pipeline.cli.main import main
for command in ("versions", "verify", "rollback"):
    try:
        main([command, "--project", {str(tmp_path)!r}])
    except SystemExit as end:
        assert end.code == 0
heavy = {{"tensorflow", "apache_beam", "tfx", "numpy", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_versions_shows_labels_and_the_share_of_the_canary(base_path, graftline):
    for command in (["serve-config"], ["promote", "2"], ["canary", "3", "--percent", "12.5"]):
        wait = [] if command == ["serve-config"] else ["--no-wait"]
        assert graftline(*command, *wait)[0] == 0
    output = graftline("versions")[1]
    rows = {line.split()[0]: line for line in output.splitlines()[2:5]}
    assert "in service  stable" in rows["2"]
    assert "canary 12.5%" in rows["3"]
    document = json.loads(graftline("versions", "--json")[1])
    assert document["labels"] == {"stable": 2, "canary": 3}
    assert document["canary_percent"] == 12.5


def test_a_canary_is_named_or_ended_not_both(base_path, graftline):
    for arguments in ((), ("3", "--end")):
        code, _, errors = graftline("canary", *arguments)
        assert (code, "--end" in errors) == (2, True)


def test_serve_config_says_how_servers_are_started(base_path, graftline, tmp_path):
    code, output, _ = graftline("serve-config")
    assert code == 0
    assert f"--model_config_file={tmp_path}/serving/models.config" in output
    assert "serving.servers" in output
    assert json.loads(graftline("serve-config", "--json")[1])["new"] is False
