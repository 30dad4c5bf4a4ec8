"""A site under load for each test of a fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import binary_of
from tests.faults.site import Site, serving


@pytest.fixture
def site() -> Iterator[Site]:
    """A separate site, under load until the test ends."""
    with serving(binary_of("2.6-debian")) as made:
        yield made
