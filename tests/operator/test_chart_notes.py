"""What the chart says after an installation about the policies that it rendered; no cluster is asked."""

from __future__ import annotations

import pytest

from readapt_cluster.binaries import ensure, path_of
from readapt_cluster.catalog import BY_NAME
from readapt_cluster.commands import run
from readapt_testing.chart import CHART, RELEASE

# Helm is one of the binaries of that tier.
pytestmark = pytest.mark.control_plane
WARNING = "WARNING: watchNamespaces is empty, so only the operator has a NetworkPolicy"


@pytest.mark.parametrize(
    ("values", "policies", "warned"),
    [
        ((), 1, True),
        (("watchNamespaces={a,b}",), 5, False),
        (("networkPolicy.enabled=false",), 0, False),
    ],
    ids=["all namespaces", "two namespaces", "no policies"],
)
def test_a_warning_where_jobs_and_serving_pods_have_no_policy(
    values: tuple[str, ...], policies: int, warned: bool
) -> None:
    ensure((BY_NAME["helm"],))
    wished = [word for value in values for word in ("--set", value)]
    told = run([path_of("helm"), "install", "--dry-run=client", RELEASE, CHART, "--namespace", "readapt", *wished])
    assert told.count("\nkind: NetworkPolicy\n") == policies
    assert (WARNING in told) is warned
