"""docs/security.md, as far as a test can see it: nothing unpickles, trusts remote code or tells where a home is."""

import ast
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from mora.data.samples import StoredSamples
from mora.io import ROOT

SOURCES = [path for folder in ("mora", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "run.py"]
OWN_PROCESSES = {"mora/data/shard_writer.py"}  # what it sends to them lies in a folder of mkdtemp
SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bghp_[A-Za-z0-9]{20,}|/root/|/home/[a-z]")


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_nothing_from_outside_is_unpickled_or_run():
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        for function, given in calls(path):
            assert function not in ("eval", "exec", "yaml.unsafe_load", "os.system"), name
            assert "trust_remote_code" not in given, name
            assert not function.startswith("pickle.load") or name in OWN_PROCESSES, name
            assert function != "torch.load" or given.get("weights_only") == "True", name
            assert not function.endswith("np.load") or "allow_pickle" not in given, name
            assert not function.endswith("extractall") or given.get("filter") == "'data'", name
            assert given.get("shell", "False") == "False", name


class Planted:
    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


def test_an_array_that_is_a_pickle_is_not_run(tmp_path):
    np.save(tmp_path / "ends.npy", np.array([Planted()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        StoredSamples([tmp_path])


def test_hydras_rerun_of_a_pickle_is_refused(tmp_path):
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Planted()))
    command = [sys.executable, "run.py", "--experimental-rerun", str(tmp_path / "config.pickle")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr == "run.py: --experimental-rerun would run what a pickle says; give the settings themselves\n"


def test_what_is_published_names_no_token_and_no_home():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "results", "docs", "README.md"], capture_output=True, text=True
    )
    texts = [
        ROOT / name for name in listed.stdout.split() if name.endswith((".json", ".jsonl", ".md", ".html", ".csv"))
    ]
    if not texts:
        pytest.skip("no git here")
    assert [str(path) for path in texts if SECRETS.search(path.read_text(errors="replace"))] == []
