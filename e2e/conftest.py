"""Fixtures of the tests on real clusters; see ``readapt_testing``."""

import pytest

from readapt_cluster import node
from readapt_cluster.errors import ClusterError

pytest_plugins = ["readapt_testing.plugin"]


def pytest_sessionstart(session: pytest.Session) -> None:
    """These tests take the node down: where one is up, or none can be, nothing is skipped but the run refuses."""
    try:
        node.check()
    except ClusterError as error:
        pytest.exit(str(error), returncode=1)
