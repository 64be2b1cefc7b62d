"""Packages from npm that tests run, in fixed versions, kept in pytest's cache between runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

INSTALL = ("npm", "install", "--save-exact", "--legacy-peer-deps", "--prefer-offline", "--no-audit", "--no-fund")
INSTALL_TIMEOUT_S = 120
NO_SUCH_VERSION = "code ETARGET"


def installed(config: pytest.Config, *packages: str) -> Path:
    """Return a folder whose ``node_modules`` has these packages, or skip the test with the reason."""
    assert config.cache is not None
    return install(config.cache.mkdir("npm"), *packages)


def install(folder: Path, *packages: str) -> Path:
    """Install packages in the folder's ``node_modules``, or skip the test with the reason."""
    if shutil.which("npm") is None:
        pytest.skip("there is no Node here")
    (folder / "package.json").touch()
    if not (folder / "package.json").read_text():
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
    try:
        run = subprocess.run(
            [*INSTALL, *packages], cwd=folder, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {', '.join(packages)} in time")
    if NO_SUCH_VERSION in run.stderr:
        pytest.fail(run.stderr)
    if run.returncode:
        pytest.skip(f"npm can't install {', '.join(packages)}: {run.stderr.strip()}")
    return folder
