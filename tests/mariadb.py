"""A MariaDB of its own for a test: Debian's server as a plain process in a temporary folder.

Its settings and its user are those of kubeflow/manifests, made by the same files.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import MANIFESTS

USER, PASSWORD = "graftline", "p@ss w/o\"rd's-\u00e9nd\\n"
SCRIPTS = MANIFESTS / "base" / "metadata"
# Where Debian puts daemons, which is not on everybody's PATH.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


class MariaDB:
    """A server that can be stopped and started again, with the user that steps have.

    Args:
        folder: for its data.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._socket = folder / "socket"
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self._run(
            "mariadb-install-db",
            f"--datadir={folder / 'data'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            f"--user={_me()}",
        )
        self.start()
        self._make_user()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [
            _program("mariadbd"),
            f"--defaults-file={SCRIPTS / 'graftline.cnf'}",
            f"--datadir={self._folder / 'data'}",
            f"--socket={self._socket}",
            f"--pid-file={self._folder / 'pid'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--innodb-flush-log-at-trx-commit=0",
            f"--user={_me()}",
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(300):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(subprocess.CalledProcessError):
                self.ask("SELECT 1")
                return
            time.sleep(0.1)
        raise AssertionError((self._folder / "log").read_text(errors="replace"))

    def _make_user(self) -> None:
        """Sources users.sh, as the entrypoint of the database's image does."""
        client = shlex.join([_program("mariadb"), "--no-defaults", f"--socket={self._socket}"])
        # The one function of the entrypoint that the script calls.
        script = f'docker_process_sql() {{ {client} "$@"; }}\n. {SCRIPTS / "users.sh"}'
        given = {"GRAFTLINE_METADATA_USER": USER, "GRAFTLINE_METADATA_PASSWORD": PASSWORD}
        subprocess.run(["bash", "-euc", script], env={**os.environ, **given}, check=True)

    def stop(self) -> None:
        """Ends it; its data stays."""
        self._process.terminate()
        self._process.wait(60)

    def ask(self, statement: str) -> str:
        """What the administrator is answered."""
        return self._run("mariadb", f"--socket={self._socket}", "--batch", f"--execute={statement}")

    def _run(self, program: str, *arguments: str) -> str:
        ended = subprocess.run(
            [_program(program), "--no-defaults", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return ended.stdout


def _program(name: str) -> str:
    return shutil.which(name, path=_PATH) or name


def _me() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


@contextlib.contextmanager
def mariadb(folder: Path) -> Iterator[MariaDB]:
    """A running server; the test is skipped where Debian's package is not installed."""
    for program in ("mariadbd", "mariadb-install-db", "mariadb"):
        if shutil.which(program, path=_PATH) is None:
            pytest.skip(f"there is no {program}: apt-get install mariadb-server")
    server = MariaDB(folder)
    try:
        yield server
    finally:
        server.stop()
