"""The operator's port on a dictionary: for tests of pure logic, where an API server would only be slow.

It keeps what writes depend on: uid, resourceVersion, generation, preconditions, merge patches, the status subresource.
It does not validate, default or prune; what the real server does with our objects is tested against the real one.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

from readapt_operator.kube.errors import AlreadyExists, Conflict, NotFound
from readapt_operator.kube.resources import EVENTS, Doc, Resource

Place = tuple[str, str, str]
"""kind, namespace, name"""


class Crash(BaseException):
    """The process is killed here. Nothing may catch it."""


class FakeKube:
    """Implements ``readapt_operator.kube.port.Kube``; ``around_write`` may raise Crash before or after a write."""

    def __init__(self, stamp: Callable[[], str]) -> None:
        self.objects: dict[Place, Doc] = {}
        self.writes: list[tuple[str, str, str]] = []
        """(verb, kind, name) of the operator's writes that took place, without Events."""
        self.creations: Counter[Place] = Counter()
        self.around_write: Callable[[str], None] = lambda when: None
        self.events: list[Doc] = []
        self.logs: dict[str, str] = {}
        """By name of the pod."""
        self.stale: dict[str, list[Doc]] = {}
        """kind -> what the next list of it returns instead of the truth, once."""
        self._stamp = stamp
        self._version = 0

    async def get(self, resource: Resource, namespace: str, name: str) -> Doc | None:
        return _copy(self.objects.get((resource.kind, namespace, name)))

    async def list(self, resource: Resource, namespace: str | None, labels: str = "") -> list[Doc]:
        if resource.kind in self.stale:
            return _copy(self.stale.pop(resource.kind))
        found = [
            d for (kind, space, _), d in self.objects.items() if kind == resource.kind and namespace in (None, space)
        ]
        return _copy([d for d in found if _matches(d, labels)])

    async def log(self, namespace: str, pod: str, container: str, lines: int) -> str:
        if pod not in self.logs:
            raise NotFound(f"no log of {namespace}/{pod} {container}")
        return "\n".join(self.logs[pod].splitlines()[-lines:])

    async def create(self, body: Doc) -> Doc:
        return self._written("create", body, lambda: self.put(body))

    async def apply(self, body: Doc) -> Doc:
        return self._written("apply", body, lambda: self._merge(body, ("spec", "data", "metadata")))

    async def patch_status(self, body: Doc) -> Doc:
        return self._written("status", body, lambda: self._merge(body, ("status",)))

    async def replace(self, body: Doc) -> Doc:
        return self._written("replace", body, lambda: self._merge(body, ("spec",)))

    async def delete(self, body: Doc) -> None:
        if _place(body) in self.objects:
            self._written("delete", body, lambda: self._remove(body))

    async def event(self, body: Doc) -> None:
        names = {e["metadata"]["name"] for e in self.events}
        assert body["kind"] == EVENTS.kind
        if body["metadata"]["name"] not in names:
            self.events.append(body)

    def _written(self, verb: str, body: Doc, write: Callable[[], Doc]) -> Doc:
        self.around_write("before")
        result = write()
        self.writes.append((verb, body["kind"], body["metadata"]["name"]))
        self.around_write("after")
        return _copy(result)

    def put(self, body: Doc) -> Doc:
        """What a user or a controller creates; also what ``create`` does."""
        place = _place(body)
        if place in self.objects:
            raise AlreadyExists(f"{place} is there")
        stored = _copy(body)
        self.creations[place] += 1
        meta = stored["metadata"]
        meta["uid"] = f"{place[0]}-{place[2]}-{self.creations[place]}"
        meta["generation"] = 1
        meta.setdefault("creationTimestamp", self._stamp())
        self.objects[place] = stored
        return self._touch(stored)

    def change(self, kind: str, name: str, namespace: str = "default", **fields: Any) -> Doc:
        """What a user or a controller changes, without preconditions; a new spec is a new generation."""
        stored = self.objects[(kind, namespace, name)]
        for key, value in fields.items():
            stored[key] = _merged(stored.get(key), value)
        if "spec" in fields:
            stored["metadata"]["generation"] += 1
        return self._touch(stored)

    def remove(self, kind: str, name: str, namespace: str = "default") -> None:
        """A user's delete, with what the garbage collector takes."""
        gone = self.objects.pop((kind, namespace, name))
        uid = gone["metadata"]["uid"]
        for (child_kind, space, child), body in list(self.objects.items()):
            if any(r["uid"] == uid for r in body["metadata"].get("ownerReferences", [])):
                self.remove(child_kind, child, space)

    def of(self, kind: str) -> dict[str, Doc]:
        """name -> object."""
        return {name: doc for (k, _, name), doc in self.objects.items() if k == kind}

    def _merge(self, body: Doc, parts: tuple[str, ...]) -> Doc:
        stored = self._exact(body)
        before = _copy(stored)
        for part in parts:
            if part in body and part != "metadata":
                stored[part] = _merged(stored.get(part), body[part])
        if "metadata" in parts and (marks := body["metadata"].get("annotations")):
            stored["metadata"]["annotations"] = _merged(stored["metadata"].get("annotations"), marks)
        if stored == before:
            return stored
        if stored.get("spec") != before.get("spec"):
            stored["metadata"]["generation"] += 1
        return self._touch(stored)

    def _remove(self, body: Doc) -> Doc:
        self._exact(body)
        self.remove(body["kind"], body["metadata"]["name"], body["metadata"]["namespace"])
        return body

    def _exact(self, body: Doc) -> Doc:
        stored = self.objects.get(_place(body))
        if stored is None:
            raise NotFound(str(_place(body)))
        for key in ("uid", "resourceVersion"):
            if body["metadata"][key] != stored["metadata"][key]:
                raise Conflict(f"{_place(body)}: {key}")
        return stored

    def _touch(self, stored: Doc) -> Doc:
        self._version += 1
        stored["metadata"]["resourceVersion"] = str(self._version)
        return stored


def _copy(value: Any) -> Any:
    """A deep copy; pickle is several times as fast as copy.deepcopy."""
    return pickle.loads(pickle.dumps(value))


def _place(body: Doc) -> Place:
    return body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]


def _matches(body: Doc, selector: str) -> bool:
    have = body["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        key, is_equality, value = term.partition("=")
        if key not in have or (is_equality and have[key] != value):
            return False
    return True


def _merged(old: Any, new: Any) -> Any:
    """RFC 7386."""
    if not isinstance(new, dict):
        return _copy(new)
    out = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = _merged(out.get(key), value)
    return out
