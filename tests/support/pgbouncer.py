"""A PgBouncer in transaction mode before a database, if the machine has one."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.server import eventually

STOP_TIMEOUT_S = 15
CONFIGURATION = """
[databases]
* = host={host}

[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 4
max_client_conn = 200
logfile = {folder}/log
"""


@contextmanager
def pgbouncer(database_url: str) -> Iterator[str]:
    """Run a PgBouncer before a database that listens on a Unix socket without passwords. Yield its connection string.

    It has fewer connections to the database than a server wants, so that statements change theirs all the time.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    parameters = conninfo_to_dict(database_url)
    folder = Path(mkdtemp(prefix="sf-bouncer-"))
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    name = next(name for name in ("postgres", "nobody") if name in accounts)
    account = accounts[name] if os.geteuid() == 0 else None  # it refuses to run as root
    (folder / "ini").write_text(CONFIGURATION.format(host=parameters["host"], folder=folder))
    (folder / "users").write_text(f'"{parameters["user"]}" ""\n')
    if account:
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
    url = make_conninfo(database_url, host=str(folder), port=6432)
    with subprocess.Popen(
        [program, folder / "ini"], cwd="/", stderr=subprocess.DEVNULL, user=account and account.pw_uid,
        group=account and account.pw_gid, extra_groups=[] if account else None,
    ) as process:  # fmt: skip
        try:
            eventually(lambda: _answers(url))
            yield url
        finally:
            process.kill()
            process.wait(STOP_TIMEOUT_S)
            shutil.rmtree(folder)


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url):
            return True
    except psycopg.OperationalError:
        return False
