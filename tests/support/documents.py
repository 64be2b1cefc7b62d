"""The code on the pages for users."""

import os
import re
import subprocess
from pathlib import Path

from tests.support.server import REPOSITORY

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")


def section(page: Path, heading: str) -> str:
    """Return what stands below a heading, up to the next of its rank."""
    rank = heading.partition(" ")[0]
    _, found, rest = page.read_text().partition(f"\n{heading}\n")
    assert found, f"{page.name} has no {heading!r}"
    return re.split(rf"^#{{1,{len(rank)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def blocks_of(text: str) -> list[tuple[str, str]]:
    """Return the code blocks of a text, each with its language."""
    return BLOCK.findall(text)


def run(command: str, folder: Path, **environment: str) -> str:
    """Run commands of a page in a shell, and return what they print."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "*", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout
