"""What the watchdog goes by: the files of the other ranks, and its own clock alone."""

import os

import pytest

from mora.train import watchdog


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have passed; the time of the day is another matter."""
    passed = [1000.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: passed[0])

    def wait(seconds):
        passed[0] += seconds

    return wait


@pytest.mark.parametrize("jump_s", [-86_400, 0, 365 * 86_400])
def test_a_clock_that_is_set_makes_no_rank_silent_and_hides_none(tmp_path, clock, jump_s):
    sign = watchdog._Sign(tmp_path / "1")
    assert sign.quiet_s() == 0
    now = 2e9
    for beat in range(5):
        clock(10)
        (tmp_path / "1").touch()
        os.utime(tmp_path / "1", (now + beat, now + beat))
        assert sign.quiet_s() == 0
    now += jump_s
    clock(10)
    os.utime(tmp_path / "1", (now + 5, now + 5))
    assert sign.quiet_s() == 0
    clock(30)
    assert sign.quiet_s() == 30, "it has stopped"


def test_a_rank_that_never_gave_a_sign_is_silent(tmp_path, clock):
    sign = watchdog._Sign(tmp_path / "1")
    sign.quiet_s()
    clock(30)
    assert sign.quiet_s() == 30


def test_a_full_disk_leaves_the_watchdog_at_its_work(tmp_path, monkeypatch):
    ended = []
    dog = watchdog.Watchdog(tmp_path, 0, 2, 0.2)
    dog.folder.mkdir()

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watchdog.Watchdog, "_mark", full)
    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda self, quiet_s: (ended.append(quiet_s), self.stop()))
    dog._watch()
    assert len(ended[0]) == 2
