"""scripts/check_multi_gpu.py in its CPU form: one row, really run, killed and resumed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_on_two_cpu_ranks_is_ok(tmp_path):
    command = [sys.executable, "scripts/check_multi_gpu.py", "--device", "cpu", "--only", "remora:zero2"]
    env = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    row = done.stdout.splitlines()[-1].split()
    assert done.returncode == 0, done.stdout + done.stderr
    assert row[:4] == ["remora", "zero2", "ok", "2"]
    assert float(row[5]) < 1e-5
    assert float(row[6]) == 0
