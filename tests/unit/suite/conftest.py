import os
from pathlib import Path

import pytest
from filelock import FileLock

from mora.config import source
from mora.suite.report.report_data import Gathered
from mora.suite.report.site import Site

HERE = {"commit": "c" * 40, "fingerprint": "here", "dirty": False}


@pytest.fixture(autouse=True)
def clean_source(monkeypatch):
    """Whatever this working tree is. A test that wants changed source sets it."""
    monkeypatch.setattr(source, "of_this_process", lambda: HERE)


@pytest.fixture
def nothing_measured(tmp_path, monkeypatch):
    """Results are looked for in a folder that is empty."""
    monkeypatch.setattr(source, "ROOT", tmp_path)


@pytest.fixture(scope="session")
def gathered() -> Gathered:
    """Of the committed results."""
    return Gathered()


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the committed results, built once for all of pytest's processes. Only to be read."""
    of_all = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        of_all = of_all.parent
    folder = of_all / "report" / "site"
    with FileLock(of_all / "report.lock"):
        if not folder.is_dir():
            Site(folder, request.getfixturevalue("gathered")).build()
    return folder
