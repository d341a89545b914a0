"""A loop installs signal handlers, which must not outlast its test."""

import signal

import pytest


@pytest.fixture(autouse=True)
def signals_as_before():
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)
