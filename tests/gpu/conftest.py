from __future__ import annotations

from collections.abc import Iterator

import pytest

from mora.adapter import kernels


@pytest.fixture(autouse=True)
def as_the_suite_computes() -> Iterator[None]:
    """Layers as small as a test's would be plain products, and no kernel of ours would be tested."""
    with kernels.use("fused"):
        yield
