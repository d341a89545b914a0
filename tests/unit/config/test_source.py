import subprocess

import pytest

from mora.config import source


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "mora").mkdir()
    (tmp_path / "mora" / "a.py").write_text("x = 1\n")
    (tmp_path / "run.py").write_text("pass\n")

    def git(*args):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=tmp_path, check=True, capture_output=True
        )

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    monkeypatch.setattr(source, "ROOT", tmp_path)
    return tmp_path


def test_committed_source_is_clean(repository):
    found = source.describe()
    assert found["dirty"] is False


def test_changed_source_says_so_and_results_do_not_make_it_dirty(repository):
    (repository / "results").mkdir()
    (repository / "results" / "x.json").write_text("{}")
    assert source.describe()["dirty"] is False
    (repository / "mora" / "a.py").write_text("x = 2\n")
    found = source.describe()
    assert found["dirty"] is True
