"""Figures of processes are those of the ones that run, and of their ended children."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.machine import cpu_s, family_cpu_s, limited_mb, read_mb

LIMIT, USED = str(2 << 30), str(3 << 20)
SPENDS = "import time\nwhile time.process_time() < 0.3: pass"


def test_cpu_of_this_process() -> None:
    """The processor time of a process is what the process itself says, but for a tick of each kind."""
    assert cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)


def test_cpu_of_ended_children() -> None:
    """A child that has ended counts for its family and no longer for itself."""
    before_s = family_cpu_s(os.getpid()) - (cpu_s(os.getpid()) or 0)
    with subprocess.Popen([sys.executable, "-c", SPENDS]) as child:
        pass
    assert cpu_s(child.pid) is None
    assert family_cpu_s(os.getpid()) - (cpu_s(os.getpid()) or 0) - before_s > 0.25


def test_reads_of_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reads of a process and its children are added up, but not those of others."""
    for pid, parent, read_bytes in ((7, 1, 3 << 20), (8, 7, 2 << 20), (9, 1, 5 << 20)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a name) S {parent} 0\n")
        (tmp_path / str(pid) / "io").write_text(f"rchar: 1\nread_bytes: {read_bytes}\nwrite_bytes: 1\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert read_mb(7) == 5


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        (
            "4:memory:/held\n0::/",
            {"memory/held/memory.limit_in_bytes": LIMIT, "memory/held/memory.usage_in_bytes": USED},
            3,
        ),
        ("4:memory:/\n0::/", {"memory/memory.limit_in_bytes": str((1 << 63) - 4_096)}, None),
        ("0::/held", {"held/memory.max": LIMIT, "held/memory.current": USED}, 3),
        ("0::/free", {"free/memory.max": "max", "free/memory.current": USED}, None),
        ("0::/", {}, None),
    ],
)
def test_memory_of_cgroup(
    line: str, files: dict[str, str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cgroup of either version counts if it has a limit."""
    for name, text in {"proc/7/cgroup": line, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    assert limited_mb(7) == expected
