"""Describes the machine: its processor, its disk, and what processes use of it. Linux only, from /proc."""

import os
import platform
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 1 << 60
"""A cgroup of version 1 without a limit has one that no machine can reach."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def description() -> str:
    """Return processor, cores, memory and load, in a line."""
    (model,) = re.findall(r"^model name\s*: (.*)", (PROC / "cpuinfo").read_text(), re.MULTILINE)[:1] or ["?"]
    (kilobytes,) = re.findall(r"^MemTotal:\s*(\d+)", (PROC / "meminfo").read_text(), re.MULTILINE)
    return (
        f"{model}, {os.cpu_count()} cores, {int(kilobytes) / 1_048_576:.0f} GB, {platform.system()} "
        f"{platform.release().split('-')[0]}; load before the start {os.getloadavg()[0]:.2f}"
    )


def sync_ms(folder: Path) -> float:
    """Return the median time to make 8 kB durable on this disk, milliseconds. Every commit waits as long."""
    durations = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(bytes(8_192))
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            durations.append(time.perf_counter() - started)
    return statistics.median(durations) * 1_000


def memory_mb(pid: int) -> float | None:
    """Return the resident memory of a process and its descendants, MB. A shared page counts once.

    None if the processes belong to another account.
    """
    parts = memory_parts_mb(pid)
    return None if parts is None else sum(parts)


def memory_parts_mb(pid: int) -> tuple[float, float] | None:
    """Return the same in two parts: without memory made to be shared, as PostgreSQL's shared buffers, and only that."""
    texts = _texts_of_family(pid, "smaps_rollup")
    if texts is None:
        return None
    total_kilobytes = shared_kilobytes = 0
    for text in texts:
        kilobytes = dict(re.findall(r"^(Pss|Pss_Shmem): *(\d+)", text, re.MULTILINE))
        total_kilobytes += int(kilobytes["Pss"])
        shared_kilobytes += int(kilobytes["Pss_Shmem"])
    return (total_kilobytes - shared_kilobytes) / 1_024, shared_kilobytes / 1_024


def limited_mb(pid: int) -> float | None:
    """Return the memory of a process's cgroup, MB: its processes', and that of the files that they read and write.

    None if that cgroup has no limit of its own.
    """
    cgroups = dict(line.split(":", 2)[1:] for line in (PROC / str(pid) / "cgroup").read_text().splitlines())
    if "memory" in cgroups:  # version 1
        folder, usage, limit = CGROUPS / "memory" / cgroups["memory"][1:], "usage_in_bytes", "limit_in_bytes"
    else:
        folder, usage, limit = CGROUPS / cgroups.get("", "/")[1:], "current", "max"
    try:
        limit_bytes = (folder / f"memory.{limit}").read_text().strip()
    except FileNotFoundError:  # the root of version 2 has none
        return None
    if limit_bytes == "max" or int(limit_bytes) >= UNLIMITED_BYTES:
        return None
    return int((folder / f"memory.{usage}").read_text()) / 1_048_576


def read_mb(pid: int) -> float | None:
    """Return what a process, its children and its ended descendants have read from disks, MB.

    None if the processes belong to another account.
    """
    texts = _texts_of_family(pid, "io")
    if texts is None:
        return None
    return sum(int(re.findall(r"^read_bytes: (\d+)", text, re.MULTILINE)[0]) for text in texts) / 1_048_576


def _texts_of_family(pid: int, name: str) -> list[str] | None:
    """Return a file of /proc of a process and of each descendant. None if the processes belong to another account."""
    texts = []
    for member in family(pid):
        try:
            texts.append((PROC / str(member) / name).read_text())
        except PermissionError:
            return None
        except (FileNotFoundError, ProcessLookupError):  # the process has just ended
            continue
    return texts


def busy_s() -> float:
    """Return the processor time of everything on this machine since its start, seconds."""
    user, nice, system, _, _, irq, softirq = map(int, (PROC / "stat").read_text().split(None, 8)[1:8])
    return (user + nice + system + irq + softirq) / TICKS_PER_S


def cpu_s(pid: int) -> float | None:
    """Return the processor time of a process, seconds, or None if it has ended."""
    times = _times_s(pid)
    return None if times is None else sum(times[:2])


def family_cpu_s(pid: int) -> float:
    """Return the processor time of a process and its descendants, those that have ended too, seconds."""
    return sum(sum(times) for member in family(pid) if (times := _times_s(member)) is not None)


def _times_s(pid: int) -> list[float] | None:
    """Return a process's time as user and as system, and the same of its ended descendants."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return [int(ticks) / TICKS_PER_S for ticks in _fields(stat)[11:15]]


def family(pid: int) -> list[int]:
    """Return the ids of a process, its children and theirs."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    members = [pid]
    for member in members:
        members += children.get(member, [])
    return members


def parent_of(pid: int) -> int | None:
    """Return the parent's id of a process, or None if there is no such process."""
    return dict(_parents()).get(pid)


def _parents() -> Iterator[tuple[int, int]]:
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(folder.name), int(_fields(stat)[1])


def _fields(stat: str) -> list[str]:
    """Return the fields after the name, which is in brackets and may hold spaces and brackets."""
    return stat.rpartition(")")[2].split()


def disk_bytes(folder: Path) -> int:
    """Return the bytes that the files below a folder occupy, without the holes of sparse files."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
