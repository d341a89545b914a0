"""A training that was cut, for the tests of what is resumed from it."""

import shutil

import pytest
from trainer_runs import SAVING, trainer_for


@pytest.fixture(scope="session")
def cut_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    trainer_for("remora", folder, stop=6, **SAVING)[0].train()
    return folder


@pytest.fixture
def cut(cut_once, tmp_path):
    """The folder, to be changed, of a training of ReMoRA that ended after step 6, between two restarts."""
    return shutil.copytree(cut_once, tmp_path / "cut")
