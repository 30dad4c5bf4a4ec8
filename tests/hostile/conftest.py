"""Select the tests to run by the user who runs them."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def users() -> None:
    """Mark a test that creates files of several users: it runs as root, or in a user namespace."""


@pytest.fixture
def namespace_of_users() -> None:
    """Mark a test that runs other tests in a user namespace: it runs for all users but root."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that do not apply to the user who runs them."""
    unwanted = "namespace_of_users" if os.geteuid() == 0 else "users"
    found = [item for item in items if unwanted in getattr(item, "fixturenames", ())]
    if found:
        config.hook.pytest_deselected(items=found)
        items[:] = [item for item in items if item not in found]
