"""A synchronous standby of a test's database: it can be cut off, come back, and take over."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import psycopg
from psycopg.conninfo import make_conninfo

from tests.support.clusters import cluster
from tests.support.server import eventually

BINARIES = "SELECT setting FROM pg_config WHERE name = 'BINDIR'"
INHERITED = ("shared_preload_libraries", "timescaledb.license", "max_connections")
"""Settings that tests' clusters have on the command line, which a backup does not hold."""


class Pair:
    """A primary, and the standby that each of its commits waits for.

    Args:
        primary_url: a superuser's connection string; the cluster behind it is this pair's alone.
        folder: where the standby is made.
    """

    def __init__(self, primary_url: str, folder: Path) -> None:
        self.url = primary_url
        """The connection string of a database on the first primary."""
        self._folder = folder
        self._standby = folder / "standby"
        with psycopg.connect(primary_url, autocommit=True) as connection:
            self._primary = Path(self._value(connection, "SHOW data_directory"))
            self._binaries = Path(self._value(connection, BINARIES))
            owner = self._primary.stat()
            self._account = owner if os.geteuid() == 0 else None
            os.chown(folder, owner.st_uid, owner.st_gid)
            found = ((name, self._value(connection, f"SELECT current_setting('{name}', true)")) for name in INHERITED)
            settings = {name: value for name, value in found if value != "None"}
            settings |= {"listen_addresses": "''", "unix_socket_directories": str(folder)}
            self._options = " ".join(f"-c {name}={value}" for name, value in settings.items())
            self._run("pg_basebackup", "-D", self._standby, "-d", primary_url, "-R", "-X", "stream", "-c", "fast")
            self.join()
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
        eventually(self._is_synchronous)

    def cut(self) -> None:
        """Stop the standby, so that no commit is confirmed any more."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._standby)

    def join(self) -> None:
        """Start the standby, unless it runs."""
        if not self._runs:
            self._start(self._options)

    def fail_over(self) -> str:
        """End the primary, let the standby take over, which has been cut, and return its connection string.

        An embedded primary is started again by its supervisor: its end can't be waited for, and the standby must not
        follow it once more.
        """
        self._run("pg_ctl", "stop", "-W", "-m", "immediate", "-D", self._primary)
        self._start(f"{self._options} -c primary_conninfo=''")
        self._run("pg_ctl", "promote", "-w", "-D", self._standby)
        url = make_conninfo(self.url, host=str(self._folder))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
        return url

    def stop(self) -> None:
        """Stop the standby, if it runs."""
        if self._runs:
            self.cut()

    def _start(self, options: str) -> None:
        self._run("pg_ctl", "start", "-w", "-D", self._standby, "-l", self._folder / "log", "-o", options)

    @property
    def _runs(self) -> bool:
        return (self._standby / "postmaster.pid").exists()

    def _is_synchronous(self) -> bool:
        with psycopg.connect(self.url) as connection:
            return connection.execute("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'").rowcount == 1

    @staticmethod
    def _value(connection: psycopg.Connection, query: str) -> str:
        row = connection.execute(query).fetchone()
        assert row is not None
        return str(row[0])

    def _run(self, program: str, *arguments: str | Path) -> None:
        # A pipe would be inherited by the server that pg_ctl leaves behind, and never end; hence a file.
        with (self._folder / "output").open("w+") as output:
            command = [self._binaries / program, *arguments]
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", check=False,
                user=self._account and self._account.st_uid, group=self._account and self._account.st_gid,
                extra_groups=[] if self._account else None,
            ).returncode  # fmt: skip
            output.seek(0)
            assert status == 0, f"{program} failed: {output.read()}"


@contextmanager
def synchronous_pair(edition: str) -> Iterator[Pair]:
    """Run a pair of an edition, or skip the test with the reason."""
    folder = Path(mkdtemp(prefix="sensorflow-standby-"))
    try:
        with cluster(edition) as url:
            pair = Pair(url, folder)
            try:
                yield pair
            finally:
                pair.stop()
    finally:
        shutil.rmtree(folder)
