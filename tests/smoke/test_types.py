"""The types of all sources, checked as one of the tests of `make test`, beside another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


pytest.importorskip("mypy")


@pytest.mark.timeout(900)  # a minute of one core, on a machine that may be busy
def test_mypy_finds_nothing():
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES")}
    command = ["make", "types", f"PY={sys.executable}"]
    checked = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Success: no issues found" in checked.stdout
