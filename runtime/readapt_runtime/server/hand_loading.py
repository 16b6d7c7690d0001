"""Adapters that a person loads by hand: vLLM's two endpoints, with digests and folder names in place of paths.

What is loaded by hand is additional to the desired set: it survives set changes until it is unloaded. A name that the
set holds is refused, and a set that claims a name later takes it over, for it says what this pod should be. Success
means registered, not verified; the first request waits for that, as for every adapter. Texts and statuses of answers
are those of vLLM 0.32 (``OpenAIServingModels``), which clients match; 409 is ours.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from readapt_api.contract import DIGEST_PATTERN, SERVED_NAME_PATTERN, Digest, ServedName
from readapt_api.errors import Terminal, Transient
from readapt_api.serving import AdapterState
from readapt_runtime.daemon_threads import to_daemon_thread
from readapt_runtime.server.adapter_root import AdapterRoot
from readapt_runtime.server.adapters import AdapterTable
from readapt_runtime.server.body import parse_body, read_body
from readapt_runtime.server.generation import Generation
from readapt_runtime.server.problems import ApiProblem, BadRequest, Conflict, Unavailable
from readapt_runtime.server.registration import Registered, Source
from readapt_runtime.store import MissingArtifact

_DIGEST = "sha256:"
_MAX_BODY_BYTES = 64 << 10


class LoadRequest(BaseModel):
    """``POST /v1/load_lora_adapter``; ``lora_path`` is a digest, or a folder's name below the adapter root."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    lora_name: ServedName
    lora_path: str | None = Field(None, pattern=rf"{DIGEST_PATTERN}|{SERVED_NAME_PATTERN}", max_length=71)
    digest: Digest | None = None
    load_inplace: bool = False
    is_3d_lora_weight: Literal[False] = False


class UnloadRequest(BaseModel):
    """``POST /v1/unload_lora_adapter``; ``lora_int_id`` has no meaning here, nor in vLLM."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    lora_name: ServedName
    lora_int_id: int | None = None


class InvalidInput(BadRequest):
    kind = "InvalidUserInput"


class NotFound(ApiProblem):
    status = 404
    kind = "NotFoundError"


class HandLoading:
    """See the module; used on one event loop."""

    def __init__(self, table: AdapterTable, source: Source, root: AdapterRoot | None) -> None:
        self._table = table
        self._source = source
        self._root = root
        self._turn = asyncio.Lock()  # of two loads of one name the second sees what the first did

    async def load_endpoint(self, request: Request) -> Response:
        wish = parse_body(LoadRequest, await read_body(request, _MAX_BODY_BYTES))
        await self.load(wish)
        return PlainTextResponse(f"Success: LoRA adapter '{wish.lora_name}' added successfully.")

    async def unload_endpoint(self, request: Request) -> Response:
        wish = parse_body(UnloadRequest, await read_body(request, _MAX_BODY_BYTES))
        self.unload(wish.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{wish.lora_name}' removed successfully.")

    async def load(self, wish: LoadRequest) -> None:
        """Registers what is wished and makes it current; the old generation answers until then. Raises ApiProblem."""
        async with self._turn:
            what = self._what(wish)
            if self._is_served(wish, what):
                return
            digest, registered = await to_daemon_thread(self._read, what)
            # the set may have changed meanwhile, and only now is the digest of a folder known
            if not self._is_served(wish, digest):
                self._table.install(wish.lora_name, digest, registered)

    def unload(self, name: str) -> None:
        """Takes the name away; answers that are being computed are finished. Raises ApiProblem."""
        if self._held(name) is None:
            raise NotFound(f"The lora adapter '{name}' cannot be found.")
        self._table.remove(name)

    def _held(self, name: str) -> Generation | None:
        """What was loaded by hand under ``name``; raises Conflict where the desired set holds it."""
        held = self._table.find(name)
        if held is not None and not held.by_hand:
            raise Conflict(f"The lora adapter '{name}' belongs to the desired set of this pod.")
        return held

    def _is_served(self, wish: LoadRequest, what: str) -> bool:
        """Whether this digest is loaded already; raises ApiProblem when it must not be loaded under this name."""
        name = wish.lora_name
        if name == self._table.reserved:
            raise InvalidInput(f"The lora adapter name '{name}' is the name of the base model.", "lora_name")
        held = self._held(name)
        if held is None or held.state is AdapterState.FAILED:
            return False
        if held.digest == what:
            return True
        if what.startswith(_DIGEST) and not wish.load_inplace:
            text = "has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
            raise InvalidInput(f"The lora adapter '{name}' {text}")
        return False

    def _what(self, wish: LoadRequest) -> str:
        """A digest, or the name of a folder below the root."""
        if wish.digest and wish.lora_path not in (None, wish.digest):
            raise InvalidInput("'lora_path' and 'digest' name different things.", "digest")
        what = wish.digest or wish.lora_path
        if what is None:
            raise InvalidInput("Both 'lora_name' and 'lora_path' must be provided.")
        if self._root is None and not what.startswith(_DIGEST):
            raise InvalidInput("This server loads variants by digest; it was started without --adapter-root.")
        return what

    def _read(self, what: str) -> tuple[Digest, Registered]:
        """In a worker thread; raises ApiProblem."""
        try:
            if self._root is not None and not what.startswith(_DIGEST):
                return self._root.load(what)
            return what, self._source.load(what)
        except MissingArtifact as error:
            raise NotFound(str(error)) from error
        except Terminal as error:
            raise BadRequest(f"{type(error).__name__}: {error}") from error
        except Transient as error:
            raise Unavailable(str(error)) from error
