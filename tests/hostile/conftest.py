"""Which tests run for whom."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def users() -> None:
    """For tests that make files of several users: as root only, in a user namespace or not."""


@pytest.fixture
def namespace_of_users() -> None:
    """For tests that run others in a user namespace: for all but root."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not apply to the user who runs the tests."""
    unwanted = "namespace_of_users" if os.geteuid() == 0 else "users"
    found = [item for item in items if unwanted in getattr(item, "fixturenames", ())]
    if found:
        config.hook.pytest_deselected(items=found)
        items[:] = [item for item in items if item not in found]
