"""On what terms a request is computed: tenants, priorities, deadlines and preloading, as they reach the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from readapt_api.serving import DesiredSet
from readapt_cluster.waiting import until
from readapt_runtime.engine.core import Request
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_testing.serving import Running, serving
from readapt_testing.tiny_engine import Tiny

PROMPT = [(7 * i) % 251 for i in range(40)]
LIMITS = Limits(max_model_len=256, pool_bytes=16 << 20, first_token_s=50.0, linger_s=0.2)


class Pod:
    """A server whose engine is listened to."""

    def __init__(self, running: Running, http: httpx.Client, admin: httpx.Client) -> None:
        self.engine = running.machinery.engine
        self.given = running.machinery.given
        self.http, self.admin = http, admin
        self.seen: list[Request] = []
        add = self.engine.add

        def listen(request: Request) -> None:
            self.seen.append(request)
            add(request)

        self.engine.add = listen  # type: ignore[method-assign]

    def ask(self, model: str, **headers: str) -> httpx.Response:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 2, "temperature": 0}
        return self.http.post(
            "/v1/completions", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    def treat(self, name: str, **how: object) -> None:
        """Pushes the same set with one adapter treated otherwise."""
        assert self.given is not None
        adapters = tuple(a.model_copy(update=how) if a.name == name else a for a in self.given.adapters)
        self.given = DesiredSet(
            sequence=self.given.sequence + 1, revision="local", base=self.given.base, adapters=adapters
        )
        assert self.admin.post("/v1/desired", json=self.given.to_wire()).status_code == 200


@pytest.fixture
def pod(tiny: Tiny) -> Iterator[Pod]:
    options = Options(
        base=tiny.base,
        served_name="tiny",
        port=0,
        admin_port=0,
        adapters=tiny.adapters,
        tenant_header="x-tenant",
        limits=LIMITS,
    )
    with (
        serving(options) as running,
        httpx.Client(base_url=running.serving, timeout=30) as http,
        httpx.Client(base_url=running.admin, timeout=30) as admin,
    ):
        assert until(lambda: http.get("/readyz").status_code == 200, 20.0, 0.02)
        yield Pod(running, http, admin)


def test_beginnings_are_shared_within_a_tenant_only_and_tenants_are_accounts(pod: Pod) -> None:
    for tenant, hits in (("a", 0), ("a", 32), ("b", 32), ("b", 64)):
        assert pod.ask("tiny", x_tenant=tenant).status_code == 200
        assert pod.engine.memory.prefixes.hits == hits
    assert [(r.tenant, r.account) for r in pod.seen] == [(t, t) for t in "aabb"]


def test_without_a_tenant_the_models_are_the_accounts(pod: Pod) -> None:
    for model in ("tiny", "r8"):
        assert pod.ask(model).status_code == 200
    assert [(r.tenant, r.account) for r in pod.seen] == [("", "tiny"), ("", "r8")]


def test_a_tenant_longer_than_its_bound_is_refused(pod: Pod) -> None:
    assert pod.ask("tiny", x_tenant="t" * 129).status_code == 400
    assert pod.seen == []


def test_the_priority_of_an_adapter_is_that_of_its_requests_and_may_change_while_it_is_served(pod: Pod) -> None:
    pod.ask("r8")
    pod.treat("r8", priority=7)
    pod.ask("r8")
    pod.ask("r4")
    assert [r.priority for r in pod.seen] == [0, 7, 0]
    assert pod.seen[0].variant is pod.seen[1].variant, "the generation stays"


def test_a_request_has_its_time_to_the_first_token_and_to_the_last(pod: Pod) -> None:
    pod.ask("tiny")
    (request,) = pod.seen
    assert request.deadline - request.first_token_by == pytest.approx(LIMITS.request_s - 50.0)


def test_an_adapter_is_preloaded_once_its_set_says_so(pod: Pod) -> None:
    residency = pod.engine.memory.residency
    assert residency.resident == 0, "nothing is in the pool that nobody asked for"
    pod.treat("r8", preload=True)
    assert until(lambda: residency.resident == 1, 20.0, 0.02)
    pod.treat("r8", preload=False)
    pod.treat("r4", preload=True)
    assert until(lambda: residency.resident == 2, 20.0, 0.02)


def test_ready_means_that_preloaded_adapters_are_verified(tiny: Tiny) -> None:
    from readapt_api.serving import AdapterState
    from readapt_runtime.server.generation import Generation
    from readapt_runtime.server.readiness import Readiness

    plain = Generation("a", f"sha256:{1:064x}", 1, state=AdapterState.REGISTERED)
    wanted = replace(plain, name="b", preload=True)
    readiness = Readiness()
    readiness.await_first((plain, wanted))
    assert not readiness.ready
    assert "such as b" in readiness.explain()
    wanted.state = AdapterState.VERIFIED
    assert readiness.ready
