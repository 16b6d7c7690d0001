"""The port's promises, asked of the dictionary that fast tests use and of a real API server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from readapt_cluster.control_plane import ControlPlane
from readapt_operator.kube.client import KubeClient
from readapt_operator.kube.connect import connect
from readapt_operator.kube.errors import AlreadyExists, Conflict, NotFound, NotLeader, Refused, Unavailable
from readapt_operator.kube.port import Kube
from readapt_operator.kube.resources import CONFIG_MAPS, LEASES, SECRETS, SERVICES, Doc
from readapt_testing.fake_kube import FakeKube

GONE = "00000000-0000-0000-0000-000000000000"


def config_map(name: str, **data: str) -> Doc:
    meta = {"name": name, "namespace": "default", "labels": {"part": "contract", "name": name}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def edit(found: Doc, **fields: Any) -> Doc:
    meta = {k: found["metadata"][k] for k in ("name", "namespace", "uid", "resourceVersion")}
    return {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": meta, **fields}


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.control_plane)])
def kube(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    if request.param == "fake":
        yield FakeKube(lambda: "2025-01-01T00:00:00Z")
        return
    plane: ControlPlane = request.getfixturevalue("control_plane")
    monkeypatch.setitem(os.environ, "KUBECONFIG", str(plane.kubeconfig))
    client = KubeClient(connect(), timeout_s=20.0)
    yield client
    for found in asyncio.run(client.list(CONFIG_MAPS, "default", "part=contract")):
        asyncio.run(client.delete(found))
    client.close()


def test_the_log_of_a_pod_that_is_not_there_is_not_found(kube: Kube) -> None:
    with pytest.raises(NotFound):
        asyncio.run(kube.log("default", "nobody", "job", 10))


def test_what_is_created_is_found_and_created_once(kube: Kube) -> None:
    async def story() -> None:
        assert await kube.get(CONFIG_MAPS, "default", "one") is None
        made = await kube.create(config_map("one", key="value"))
        assert made["metadata"]["uid"]
        with pytest.raises(AlreadyExists):
            await kube.create(config_map("one"))
        found = await kube.get(CONFIG_MAPS, "default", "one")
        assert found is not None
        assert found["data"] == {"key": "value"}

    asyncio.run(story())


def test_lists_select_by_labels_and_items_say_what_they_are(kube: Kube) -> None:
    async def story() -> None:
        for name in ("one", "two"):
            await kube.create(config_map(name))
        both = await kube.list(CONFIG_MAPS, "default", "part=contract")
        assert sorted(d["metadata"]["name"] for d in both) == ["one", "two"]
        assert {(d["apiVersion"], d["kind"]) for d in both} == {("v1", "ConfigMap")}
        (two,) = await kube.list(CONFIG_MAPS, None, "part=contract,name=two")
        assert two["metadata"]["name"] == "two"
        assert await kube.list(CONFIG_MAPS, "default", "part=contract,absent") == []

    asyncio.run(story())


def test_apply_merges_into_what_was_read_and_into_nothing_else(kube: Kube) -> None:
    async def story() -> None:
        made = await kube.create(config_map("one", a="1", b="2"))
        changed = await kube.apply(edit(made, data={"a": "3", "b": None}))
        assert changed["data"] == {"a": "3"}
        with pytest.raises(Conflict):
            await kube.apply(edit(made, data={"a": "4"}))
        other = edit(changed, data={"a": "5"})
        other["metadata"]["uid"] = GONE
        with pytest.raises(Conflict):
            await kube.apply(other)
        await kube.delete(changed)
        with pytest.raises(NotFound):
            await kube.apply(edit(changed, data={"a": "6"}))

    asyncio.run(story())


def test_an_apply_that_changes_nothing_is_no_new_version(kube: Kube) -> None:
    async def story() -> None:
        made = await kube.create(config_map("one", a="1"))
        same = await kube.apply(edit(made, data={"a": "1"}))
        assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]

    asyncio.run(story())


def test_delete_takes_what_was_read_or_nothing(kube: Kube) -> None:
    async def story() -> None:
        made = await kube.create(config_map("one", a="1"))
        await kube.apply(edit(made, data={"a": "2"}))
        with pytest.raises(Conflict):
            await kube.delete(made)
        current = await kube.get(CONFIG_MAPS, "default", "one")
        assert current is not None
        await kube.delete(current)
        await kube.delete(current)
        assert await kube.get(CONFIG_MAPS, "default", "one") is None

    asyncio.run(story())


def test_replace_is_guarded_by_the_version(kube: Kube) -> None:
    async def story() -> None:
        meta = {"name": "contract", "namespace": "default"}
        body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": meta, "spec": {"holderIdentity": "a"}}
        made = await kube.create(body)
        await kube.replace(edit(made, spec={"holderIdentity": "b"}))
        with pytest.raises(Conflict):
            await kube.replace(edit(made, spec={"holderIdentity": "c"}))
        current = await kube.get(LEASES, "default", "contract")
        assert current is not None
        assert current["spec"]["holderIdentity"] == "b"
        await kube.delete(current)

    asyncio.run(story())


def test_the_same_event_twice_is_no_error(kube: Kube) -> None:
    about = {"apiVersion": "v1", "kind": "ConfigMap", "namespace": "default", "name": "one"}
    meta = {"name": "one.0123", "namespace": "default"}
    body = {"apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": about, "reason": "Told"}

    async def story() -> None:
        await kube.event({**body, "type": "Normal", "message": "once"})
        await kube.event({**body, "type": "Normal", "message": "once"})

    asyncio.run(story())


@pytest.mark.control_plane
def test_the_real_client_tells_refusals_from_absence_and_sends_nothing_without_the_lease(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "KUBECONFIG", str(control_plane.kubeconfig))
    client = KubeClient(connect(), timeout_s=20.0)

    def closed() -> float:
        raise NotLeader("the lease is not held")

    async def story() -> None:
        meta = {"name": "bad", "namespace": "default"}
        bad = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": -1}]}}
        with pytest.raises(Refused, match="port"):
            await client.create(bad)
        with pytest.raises(NotLeader):
            await client.gated(closed).create(config_map("never"))
        assert await client.get(CONFIG_MAPS, "default", "never") is None
        assert await client.get(SERVICES, "default", "bad") is None
        with pytest.raises(Unavailable):
            await KubeClient(_nowhere(), timeout_s=1.0).get(SECRETS, "default", "x")

    asyncio.run(story())
    client.close()


def _nowhere() -> Any:
    api = connect()
    api.configuration.host = "https://127.0.0.1:9"
    return api
