"""The environment as `make` makes it, here from a lock file of three packages."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STACK = "tfx-1.16" if sys.version_info < (3, 12) else "tfx-1.21"
PACKAGES = ("uv", "setuptools", "msgspec")

pytestmark = pytest.mark.end_to_end


def copy_to(checkout: Path) -> Path:
    """Copies what an environment is made from, with a small lock file."""
    for name in ("pipeline", "components", "schemas", "serving", "kubeflow", "requirements"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    lock = checkout / "requirements" / f"{STACK}.lock"
    lock.write_text("".join(f"{pinned(name)}\n" for name in PACKAGES))
    return checkout


def pinned(name: str) -> str:
    lock = (ROOT / "requirements" / f"{STACK}.lock").read_text()
    found = re.search(rf"^{name}==.*$", lock, re.MULTILINE)
    assert found
    return found.group()


def start(checkout: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [checkout / "requirements" / "environment.sh"],
        env={**os.environ, "GRAFTLINE_STACK": STACK},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def make(checkout: Path) -> str:
    """Makes the environment and returns what was printed."""
    process = start(checkout)
    printed, _ = process.communicate()
    assert process.returncode == 0
    return printed


def installed(checkout: Path) -> bool:
    command = [checkout / ".venv/bin/python", "-c", "import msgspec, graftline.serving.errors"]
    return subprocess.run(command, cwd="/", check=False).returncode == 0


@pytest.fixture(scope="module")
def made_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A checkout whose environment two processes made at once, and what each printed."""
    checkout = copy_to(tmp_path_factory.mktemp("checkout"))
    both = [start(checkout), start(checkout)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    return checkout, sorted(printed)


def test_two_at_once_make_one_whole_environment(made_by_two: tuple[Path, list[str]]) -> None:
    checkout, (waited, made) = made_by_two
    assert waited == ""
    assert "Making .venv" in made
    assert installed(checkout)


def test_one_that_is_up_to_date_is_left_alone(made_by_two: tuple[Path, list[str]]) -> None:
    checkout, _ = made_by_two
    assert make(checkout) == ""


def test_a_changed_lock_file_is_installed_into_it(made_by_two: tuple[Path, list[str]]) -> None:
    checkout, _ = made_by_two
    with (checkout / "requirements" / f"{STACK}.lock").open("a") as lock:
        lock.write(pinned("click"))
    printed = make(checkout)
    assert "Installing" in printed
    assert "Making" not in printed
    subprocess.run([checkout / ".venv/bin/python", "-c", "import click"], check=True)


def test_one_that_a_kill_left_half_made_is_made_anew(tmp_path: Path) -> None:
    checkout = copy_to(tmp_path)
    process = start(checkout)
    assert process.stdout
    assert "Making .venv" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "Making .venv" in make(checkout)
    assert installed(checkout)
