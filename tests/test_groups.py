"""Tests that share what they prepare stay on one worker."""

import os

import pytest


def test_groups_reach_the_scheduler(request: pytest.FixtureRequest) -> None:
    """pytest-xdist reads them from the ends of node ids; with a pytest whose ids it cannot change they do nothing."""
    assert ("@" in request.node.nodeid) == ("PYTEST_XDIST_WORKER" in os.environ)
