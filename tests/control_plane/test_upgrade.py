"""The thread of an upgrade without a node: repair, switch under load, roll back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from readapt_api.digest import hex_of
from readapt_testing.clients import Answer, Client
from readapt_testing.kube import Object
from readapt_testing.oracle import NEAR_TIE, Expected, Pair
from readapt_testing.service_dialer import ServiceDialer
from readapt_testing.world import ADAPTER, BASE, CHECKPOINT, World

pytestmark = [pytest.mark.control_plane, pytest.mark.fault]

MODELS = (BASE, ADAPTER, CHECKPOINT)
FREE_PROMPTS = ("t0w0 t0w3", "t1w4 g1 t1w7 t1w10", "t5w19 t5w2", "label1 label4", "t7w7 t3w3 t2w2")
Texts = dict[tuple[str, str], dict[str, Expected]]
"""(set, model@digest or the base's name) to prompt to what must be answered."""


def test_upgrade_under_load_and_back(world: World) -> None:
    prompts = [*world.models.prompts("adapter", 12), *FREE_PROMPTS]
    world.apply_base()
    world.apply_adapter()
    world.apply_checkpoint()
    old = world.wait_settled("v1")
    texts = expected_texts(world, world.models.v1, prompts)
    with (
        ServiceDialer(world.kube, world.namespace, BASE) as dialer,
        Client(dialer, MODELS, prompts, keep_alive=True) as kept,
        Client(dialer, MODELS, prompts, keep_alive=False) as fresh,
    ):
        clients = (kept, fresh)
        _ask_a_while(clients)
        world.wish("v2")
        new = world.wait_settled("v2")
        texts |= expected_texts(world, world.models.v2, prompts)
        _ask_a_while(clients)
        jobs = world.recorder.creations("Job")
        world.wish("v1")
        world.wait_settled("v1")
        _ask_a_while(clients)

    revisions = [old["status"]["revision"], new["status"]["revision"]]
    assert len(set(revisions)) == 2
    answers = [answer for client in clients for answer in client.answers()]
    assert [a for a in answers if a.problem] == []
    assert [a for a in answers if not _is_right(a, texts)] == []
    _assert_telling(answers, texts, prompts)
    for client in clients:
        assert _sets_in_order(client) == [
            old["status"]["revision"],
            new["status"]["revision"],
            old["status"]["revision"],
        ]
    assert world.recorder.creations("Job") == jobs, "a roll-back needs no Job"
    assert set(jobs.values()) == {1}
    _assert_repaired(world)


def _ask_a_while(clients: Sequence[Client]) -> None:
    for client in clients:
        client.wait_for(20)


def expected_texts(world: World, base: Path, prompts: Sequence[str]) -> Texts:
    """What the set that is served now must answer, by transformers and PEFT over the store's variants."""
    revision = world.base()["status"]["revision"]
    texts: Texts = {(revision, BASE): Pair(base, None).answers(prompts, 6)}
    for name in (ADAPTER, CHECKPOINT):
        digest = world.adapter(name)["status"]["servedDigest"]
        variant = world.store / "artifacts" / hex_of(digest)
        texts[revision, f"{name}@{digest}"] = Pair(base, variant).answers(prompts, 6)
    return texts


def _is_right(answer: Answer, texts: Texts) -> bool:
    """The text is that of exactly the pair which the headers name."""
    named = texts.get((answer.set, answer.adapter or BASE))
    if named is None or (answer.adapter.partition("@")[0] or BASE) != answer.model:
        return False
    expected = named[answer.prompt]
    return expected.margin < NEAR_TIE or answer.text.split() == expected.text.split()


def _assert_telling(answers: Sequence[Answer], texts: Texts, prompts: Sequence[str]) -> None:
    """For every model there are prompts on which the two sets differ, and they were asked of both."""
    for model in MODELS:
        pairs = [found for (_, name), found in texts.items() if name.partition("@")[0] == model]
        assert len(pairs) == 2
        telling = {p for p in prompts if len({found[p].text for found in pairs}) == 2}
        assert len(telling) >= 3, f"{model}: both sets answer nearly everything alike"
        assert {a.set for a in answers if a.model == model and a.prompt in telling} == {s for s, _ in texts}


def _sets_in_order(client: Client) -> list[str]:
    """The sets that a client saw, without repetitions."""
    seen: list[str] = []
    for answer in client.answers():
        if not seen or seen[-1] != answer.set:
            seen.append(answer.set)
    return seen


def _assert_repaired(world: World) -> None:
    for name in (ADAPTER, CHECKPOINT):
        variants = {v["baseVersion"]: v for v in world.adapter(name)["status"]["variants"]}
        assert variants["v1"]["origin"] == {ADAPTER: "Native", CHECKPOINT: "Extracted"}[name]
        _assert_worth_it(variants["v2"])


def _assert_worth_it(variant: Object) -> None:
    """Copy lost at least four points; the repaired variant passed."""
    assert variant["passed"]
    assert variant["origin"] in ("Transported", "ReLoRA")
    assert float(variant["reference"]) - float(variant["copyScore"]) >= 0.04
    assert float(variant["reference"]) - float(variant["score"]) <= 0.04
