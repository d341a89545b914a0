import os

import pytest

from mora.models.tokenizers import character_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is taken from, or left in, the user's cache; local data only where a test asks for them."""
    monkeypatch.setenv("MORA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MORA_DATA_DIR", raising=False)


@pytest.fixture
def characters():
    return character_tokenizer()


REAL = os.environ.get("MORA_DATA_DIR")


@pytest.fixture
def real_data(monkeypatch):
    if not REAL:
        pytest.skip("MORA_DATA_DIR is not set")
    monkeypatch.setenv("MORA_DATA_DIR", REAL)
