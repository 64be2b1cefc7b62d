"""Processor time is read of processes that run, and of their ended children."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks.machine import cpu_s, family_cpu_s

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
