from pathlib import Path

import pytest

from mora.config import source
from mora.suite.report.gather import Gathered
from mora.suite.report.site import Site

HERE = {"commit": "c" * 40, "fingerprint": "here", "dirty": False}


@pytest.fixture(autouse=True)
def clean_source(monkeypatch):
    """Whatever this working tree is. A test that wants changed source sets it."""
    monkeypatch.setattr(source, "of_this_process", lambda: HERE)


@pytest.fixture(scope="session")
def gathered() -> Gathered:
    """Of the committed results."""
    return Gathered()


@pytest.fixture(scope="session")
def site(gathered: Gathered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the committed results. Only to be read."""
    folder = tmp_path_factory.mktemp("report") / "site"
    Site(folder, gathered).build()
    return folder
