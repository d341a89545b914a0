"""What the system says to a worker that cannot be started."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from mora.config import ConfigError, compose
from mora.suite import launch


def test_a_command_that_the_system_refuses_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.E2BIG, "Argument list too long")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    config = compose(["task=uuid", "method=mora", "r=8", "scale=smoke"])
    with pytest.raises(ConfigError, match=r"^the worker cannot be started \(Argument list too long\): .*mora\.train"):
        launch._work(config, Path("folder"), None, None, None)
