"""Plan -> writes, in the plan's order. One failed write does not keep the others from being tried."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import assert_never

from readapt_api import labels
from readapt_api.errors import ReadaptError, Terminal, Transient
from readapt_operator.builders.meta import controller_uid
from readapt_operator.decide.plan import Action, Apply, Create, Delete, Drain, Push, StartJob
from readapt_operator.kube.errors import AlreadyExists
from readapt_operator.kube.port import Kube
from readapt_operator.kube.resources import Doc, resource_of
from readapt_operator.pods import PodAdmin
from readapt_operator.queue import Key

log = logging.getLogger(__name__)


class ForeignObject(Terminal):
    """An object of the name that is needed belongs to somebody else."""


class LeftBehind(Transient):
    """It belongs to an earlier object of our owner's name; the garbage collector is about to take it."""


class GoneAgain(Transient):
    """It was in the way of a create, and has been deleted since."""


@dataclass(slots=True)
class Outcome:
    """What went wrong: foreign objects by owner (kind, name), and everything else."""

    foreign: dict[tuple[str, str], str] = field(default_factory=dict)
    errors: list[ReadaptError] = field(default_factory=list)


async def act(key: Key, actions: tuple[Action, ...], kube: Kube, pods: PodAdmin) -> Outcome:
    """Carries out the actions. Never raises what an API server can answer."""
    outcome = Outcome()
    for action in actions:
        try:
            await _carry_out(key, action, kube, pods)
        except ForeignObject as error:
            outcome.foreign[_owner_of(action)] = str(error)
        except (Transient, Terminal) as error:
            log.warning("%s: %s", key, error)
            outcome.errors.append(error)
    return outcome


async def _carry_out(key: Key, action: Action, kube: Kube, pods: PodAdmin) -> None:
    match action:
        case Create(body):
            await _create(key, body, kube)
        case StartJob(request, job):
            there = await _create(key, request, kube)
            await _create(key, _of_the_same_items(job, there), kube)
        case Apply(body):
            log.info("%s: changing %s", key, _label(body))
            await kube.apply(body)
        case Delete(body, why):
            log.info("%s: deleting %s: %s", key, _label(body), why)
            await kube.delete(body)
        case Push(targets, desired):
            await pods.push(key, [p.ip for p in targets if p.ip], desired)
        case Drain(targets):
            log.info("%s: draining %s", key, ", ".join(p.name for p in targets))
            await pods.drain(key, [p.ip for p in targets if p.ip])
        case _:
            assert_never(action)


async def _create(key: Key, body: Doc, kube: Kube) -> Doc:
    """POST; what is there already is accepted, and returned, when it is ours and for the same work."""
    try:
        await kube.create(body)
    except AlreadyExists:
        meta = body["metadata"]
        found = await kube.get(resource_of(body), meta["namespace"], meta["name"])
        if found is None:
            raise GoneAgain(f"{_label(body)} was there and is not any more") from None
        _check_ours(body, found)
        return found
    log.info("%s: created %s", key, _label(body))
    return body


def _of_the_same_items(job: Doc, request: Doc) -> Doc:
    """The Job with the mark of the request that it will read: one that was there before may name other adapters."""
    marks = {k: v for k, v in job["metadata"]["annotations"].items() if k != labels.OTHER_ITEMS}
    there = request["metadata"].get("annotations") or {}
    if labels.OTHER_ITEMS in there:
        marks[labels.OTHER_ITEMS] = there[labels.OTHER_ITEMS]
    return {**job, "metadata": {**job["metadata"], "annotations": marks}}


def _check_ours(body: Doc, found: Doc) -> None:
    wished, there = body["metadata"]["ownerReferences"][0], _controller(found)
    if controller_uid(found) != wished["uid"]:
        if there is not None and (there["kind"], there["name"]) == (wished["kind"], wished["name"]):
            raise LeftBehind(f"{_label(found)} belongs to an earlier {wished['kind']} {wished['name']}")
        raise ForeignObject(f"{_label(found)} is there and is not ours; rename or remove it")
    if _input_hash(body) != _input_hash(found):
        raise ForeignObject(f"{_label(found)} is there with another input hash")


def _controller(body: Doc) -> Doc | None:
    references: list[Doc] = body["metadata"].get("ownerReferences") or []
    return next((r for r in references if r.get("controller")), None)


def _input_hash(body: Doc) -> str | None:
    marks: dict[str, str] = body["metadata"].get("annotations") or {}
    return marks.get(labels.INPUT_HASH)


def _owner_of(action: Action) -> tuple[str, str]:
    assert isinstance(action, Create | StartJob)
    body = action.body if isinstance(action, Create) else action.job
    reference = body["metadata"]["ownerReferences"][0]
    return reference["kind"], reference["name"]


def _label(body: Doc) -> str:
    return f"{body['kind']} {body['metadata']['name']}"
