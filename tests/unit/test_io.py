"""Who may be in a folder with whom, and how a file is replaced."""

import threading

import pytest

from mora import io
from mora.io import locked, replace_file


@pytest.mark.parametrize(
    ("first", "second", "both"), [(False, False, False), (False, True, False), (True, False, False), (True, True, True)]
)
def test_a_lock_is_shared_only_by_those_who_would_share_it(tmp_path, first, second, both):
    with locked(tmp_path, shared=first) as one, locked(tmp_path, shared=second, wait=False) as two:
        assert (one, two) == (True, both)
    with locked(tmp_path, wait=False) as free:
        assert free, "it is free again"


def test_who_waits_has_it_when_the_other_leaves(tmp_path):
    had = []

    def second():
        with locked(tmp_path) as ours:
            had.append(ours)

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        assert had == []
    thread.join(10)
    assert had == [True]


def test_a_folder_in_place_of_a_file_is_said_with_its_name_and_nothing_is_left(tmp_path):
    (tmp_path / "table.md").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a folder is where a file belongs, move it away: '.*table\.md'$"):
        replace_file(tmp_path / "table.md", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


def test_a_lock_is_the_systems_whatever_host_its_file_names(tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text("123 on a host that was switched off")
    with locked(tmp_path, wait=False) as ours:
        assert ours
        monkeypatch.setattr(io.socket, "gethostname", lambda: "second")
        assert "second" not in io.holder(tmp_path)
        with locked(tmp_path, wait=False) as theirs:
            assert not theirs
        assert "second" not in io.holder(tmp_path), "who did not get it leaves no name"


def test_two_hosts_may_replace_a_file_at_once(tmp_path, monkeypatch):
    with io.replacing(tmp_path / "table.md") as first:
        first.write_text("first")
        monkeypatch.setattr(io.socket, "gethostname", lambda: "second")
        replace_file(tmp_path / "table.md", "second")
        assert first.read_text() == "first"
    assert (tmp_path / "table.md").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
