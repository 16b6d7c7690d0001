"""What the operator asks of an API server. Two implementations: the real client, and a dictionary in tests."""

from __future__ import annotations

from typing import Protocol

from readapt_operator.kube.resources import Doc, Resource


class Kube(Protocol):
    """All calls end within a time-out and raise the errors of ``kube.errors``.

    Reads are consistent (served by a quorum), but what they return may be stale by the time it is used: writes carry
    the uid and resourceVersion of what was read.
    """

    async def get(self, resource: Resource, namespace: str, name: str) -> Doc | None:
        """The object, or None."""

    async def list(self, resource: Resource, namespace: str | None, labels: str = "") -> list[Doc]:
        """The objects of a namespace, or of all, with apiVersion and kind; ``labels`` is a label selector."""

    async def log(self, namespace: str, pod: str, container: str, lines: int) -> str:
        """The last ``lines`` of what a container has written. Raises NotFound, Refused before it has started."""

    async def create(self, body: Doc) -> Doc:
        """POST. Raises AlreadyExists."""

    async def apply(self, body: Doc) -> Doc:
        """Merges the given fields into the object that metadata.uid and metadata.resourceVersion identify.

        A field given as None is removed. Raises Conflict, NotFound.
        """

    async def patch_status(self, body: Doc) -> Doc:
        """The same for the status subresource."""

    async def replace(self, body: Doc) -> Doc:
        """PUT with metadata.resourceVersion; used for the Lease alone. Raises Conflict, NotFound."""

    async def delete(self, body: Doc) -> None:
        """Deletes the object with exactly this uid and resourceVersion, dependents in the background.

        An object that is gone already is no error. Raises Conflict.
        """

    async def event(self, body: Doc) -> None:
        """Creates an Event; one of that name is no error."""
