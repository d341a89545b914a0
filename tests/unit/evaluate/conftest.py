"""What the tests of evaluation share."""

import pytest

from mora.config.cached_composition import compose_cached as compose
from mora.models.load import load_model


@pytest.fixture(scope="module")
def tiny():
    """The tiny model of scale=smoke in fp32, and its tokenizer."""
    return load_model(compose(["task=uuid", "method=none", "scale=smoke"]).model, "fp32")
