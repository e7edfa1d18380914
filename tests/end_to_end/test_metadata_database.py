"""The metadata database of kubeflow/manifests: its own settings and scripts, on a real MariaDB."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import run
from mariadb import PASSWORD, SCRIPTS, USER, MariaDB, mariadb

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    with mariadb(tmp_path_factory.mktemp("db")) as found:
        yield found


def test_the_user_has_the_only_plugin_that_mlmd_speaks(database):
    found = database.ask("SELECT user, host, plugin FROM mysql.user WHERE user = 'graftline'")
    assert found.splitlines()[1:] == ["graftline\t%\tmysql_native_password"]


def test_the_user_has_rights_on_databases_of_projects_alone(database):
    rights, usage = sorted(database.ask("SHOW GRANTS FOR graftline@'%'").splitlines()[1:])
    assert usage.startswith("GRANT USAGE ON *.*")
    assert rights == "GRANT ALL PRIVILEGES ON `graftline%`.* TO `graftline`@`%`"


def test_the_settings_are_those_of_the_file(database):
    waits = database.ask("SELECT @@global.wait_timeout").split()[-1]
    assert int(waits) == 7 * 24 * 3600


def test_mlmd_makes_a_database_and_a_backup_of_it_can_be_restored(database, tmp_path):
    from ml_metadata import metadata_store
    from ml_metadata.proto import metadata_store_pb2

    _as_user(database, "CREATE DATABASE graftline_flowers")
    config = metadata_store_pb2.ConnectionConfig()
    config.mysql.host, config.mysql.port = "127.0.0.1", database.port
    config.mysql.database = "graftline_flowers"
    config.mysql.user, config.mysql.password = USER, PASSWORD
    store = metadata_store.MetadataStore(config, enable_upgrade_migration=True)
    store.put_context_type(metadata_store_pb2.ContextType(name="pipeline"))
    done = _backup(database, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "graftline_flowers" in done.stdout
    [dump] = tmp_path.iterdir()
    del store
    _as_user(database, "DROP DATABASE graftline_flowers")
    _as_user(database, gzip.decompress(dump.read_bytes()).decode())
    again = metadata_store.MetadataStore(config)
    assert [found.name for found in again.get_context_types()] == ["pipeline"]


def test_the_newest_backups_are_kept(database, tmp_path):
    _as_user(database, "CREATE DATABASE IF NOT EXISTS graftline_other")
    for day in range(1, 6):
        (tmp_path / f"metadata-2026010{day}T013000Z.sql.gz").touch()
    assert _backup(database, tmp_path, keep=3).returncode == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:2] == ["metadata-20260104T013000Z.sql.gz", "metadata-20260105T013000Z.sql.gz"]
    assert len(names) == 3


def test_a_backup_that_fails_leaves_the_others_and_nothing_half_made(database, tmp_path):
    kept = tmp_path / "metadata-20260101T013000Z.sql.gz"
    kept.touch()
    done = _backup(database, tmp_path, keep=1, password="wrong")
    assert done.returncode != 0
    assert "Access denied" in done.stderr
    assert list(tmp_path.iterdir()) == [kept]


def _backup(
    database: MariaDB, folder: Path, keep: int = 14, password: str = PASSWORD
) -> subprocess.CompletedProcess[str]:
    return run(
        *("bash", SCRIPTS / "backup.sh"),
        env={
            "PATH": os.environ["PATH"],
            "BACKUPS": str(folder),
            "KEEP": str(keep),
            "METADATA_HOST": "127.0.0.1",
            "MYSQL_TCP_PORT": str(database.port),
            "METADATA_USER": USER,
            "MYSQL_PWD": password,
        },
    )


def _as_user(database: MariaDB, statements: str) -> None:
    done = subprocess.run(
        ["mariadb", "--host=127.0.0.1", f"--port={database.port}", "--user=graftline"],
        input=statements,
        env={"PATH": os.environ["PATH"], "MYSQL_PWD": PASSWORD},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
