"""A quick part of `make peft-tests`: PEFT's own tests, from its source distribution, on MoRA."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import peft
import pytest

ROOT = Path(__file__).resolve().parents[3]
QUICK = (
    "(merge_layers or disable_adapters or parameters_after_loading) and (rotation or sharing or Conv1D)"
    " or TestDecoderModels and merge_layers and qwen2 or TestModelAndLayerStatus or TestPeftCustomKwargs"
)


def test_a_part_of_pefts_own_tests_passes(tmp_path):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--no-build-isolation", "--retries", "0", "--timeout", "10", "--dest", str(tmp_path)]
    fetched = subprocess.run([*command, f"peft=={peft.__version__}"], capture_output=True, text=True)
    archives = list(tmp_path.glob("peft-*.tar.gz"))
    if not archives:
        pytest.skip(f"PEFT's source distribution cannot be fetched: {fetched.stderr.strip()[-100:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.glob("peft-*") if path.is_dir())
    (source / "tests" / "__init__.py").touch()
    paths = [ROOT, ROOT / "tests" / "peft_suite"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-o", "addopts=", "-k", QUICK]
    command += ["tests/test_custom_models.py", "tests/test_decoder_models.py", "tests/test_tuners_utils.py"]
    ran = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert int(ran.stdout.split(" passed")[0].split()[-1]) > 80
