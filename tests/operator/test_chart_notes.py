"""The policies that the chart renders, and what it says about them; no cluster is asked."""

from __future__ import annotations

import pytest
import yaml

from readapt_cluster.binaries import ensure, path_of
from readapt_cluster.catalog import BY_NAME
from readapt_cluster.commands import CommandFailed, run
from readapt_testing.chart import CHART, RELEASE, render

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


@pytest.mark.parametrize(
    ("values", "ports"),
    [((), [443, 6443]), (("networkPolicy.apiServerPorts={8443}",), [8443])],
    ids=["default", "told"],
)
def test_the_operator_may_reach_the_ports_of_the_api_server(values: tuple[str, ...], ports: list[int]) -> None:
    wished = [word for value in values for word in ("--set", value)]
    rendered = render("models", "-s", "templates/networkpolicy.yaml", *wished)
    (policy,) = [p for p in yaml.safe_load_all(rendered) if p["metadata"]["name"] == "readapt-operator"]
    _, api_server, _ = policy["spec"]["egress"]
    assert api_server == {"ports": [{"port": port} for port in ports]}


@pytest.mark.parametrize("ports", ["{}", "{0}", "{https}"])
def test_what_is_no_port_of_an_api_server_is_refused(ports: str) -> None:
    with pytest.raises(CommandFailed, match="apiServerPorts"):
        render("models", "--set", f"networkPolicy.apiServerPorts={ports}")


def test_annotations_of_the_operators_pod_are_the_users() -> None:
    annotation = ("--set-string", "operator.podAnnotations.image-id=0123456789ab")
    deployment = yaml.safe_load(render("models", "-s", "templates/deployment.yaml", *annotation))
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {"image-id": "0123456789ab"}


@pytest.mark.parametrize("value", ["watchNamespace={a}", "operator.resyncSecond=60", "images.serving=x"])
def test_a_key_that_the_chart_does_not_know_is_refused(value: str) -> None:
    key = value.partition("=")[0].rpartition(".")[2]
    with pytest.raises(CommandFailed, match=f"additional properties '{key}' not allowed"):
        render("models", "--set", value)
