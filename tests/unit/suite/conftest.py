import pytest

from mora.config import source

HERE = {"commit": "c" * 40, "fingerprint": "here", "dirty": False}


@pytest.fixture(autouse=True)
def clean_source(monkeypatch):
    """Whatever this working tree is. A test that wants changed source sets it."""
    monkeypatch.setattr(source, "of_this_process", lambda: HERE)
