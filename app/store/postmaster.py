"""The process that serves a PostgreSQL data folder, found without trusting its ``postmaster.pid`` alone.

That file outlives a killed machine and is copied with the folder, so its process number may belong to anything: a
signal to it would hit a stranger, or the PostgreSQL of the original folder. A process counts as the folder's postmaster
only if it runs ``postgres`` in that very folder.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

PID_FILE = "postmaster.pid"
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Postmaster:
    """The process that serves a folder."""

    pid: int
    is_ready: bool
    """Whether it takes connections; not so during recovery."""


def postmaster_of(folder: Path) -> Postmaster | None:
    """Return the process that serves a data folder. None if there is none."""
    try:
        lines = (folder / PID_FILE).read_text(errors="surrogateescape").splitlines()
        pid = int(lines[0])
    except (OSError, ValueError, IndexError):
        return None
    if pid <= 0 or not _is_postmaster(pid, folder):
        return None
    return Postmaster(pid, is_ready=lines[-1].strip() == "ready")


def remove_stale_pid_file(folder: Path) -> None:
    """Remove a pid file that names a process of another folder. PostgreSQL would refuse to start.

    One that names no process, or another account's, stays: PostgreSQL sees that itself, and looks by it for what a
    killed postmaster has left running.
    """
    path = folder / PID_FILE
    try:
        pid = int(path.read_text(errors="surrogateescape").splitlines()[0])
        os.kill(pid, 0)
    except (OSError, ValueError, IndexError, OverflowError):
        return
    else:
        if not _is_postmaster(pid, folder):
            path.unlink()


def _is_postmaster(pid: int, folder: Path) -> bool:
    if not (PROC / "self").exists():
        return _is_postmaster_by_ps(pid, folder)
    process = PROC / str(pid)
    try:
        # A session's process has a title there, "postgres: user database".
        program, *arguments = (process / "cmdline").read_bytes().split(b"\0")
        if Path(os.fsdecode(program)).name != "postgres":
            return False
        try:
            return (process / "cwd").samefile(folder)
        except PermissionError:  # root without CAP_SYS_PTRACE, as in a container, may not look at another account's
            return os.fsencode(folder) in arguments
    except OSError:
        return False


def _is_postmaster_by_ps(pid: int, folder: Path) -> bool:
    """Ask ``ps``, where there is no /proc, as on macOS."""
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"postgres -D {folder} " in found.stdout
