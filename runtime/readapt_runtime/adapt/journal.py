"""What an unfinished repair has found out, kept in the store until its result is there.

In: the input hash of one item and the circumstances it is worked on in. ``once`` names a piece of work whose result is
recorded when it is done: a run after a kill gets the record and does not do the work again. ``save`` and ``load`` are
for the large state of something that is still going on (a tuning and its optimizer). Records are told to nobody but a
run of the same work, with the same versions, number format and threads, so that it ends with the bytes of an
undisturbed run; any other record, and a damaged one, is ignored with a line in the log.

Two files of the store's ``progress/``, each replaced as a whole: ``<hex>.json`` and ``<hex>.<name>.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from safetensors.torch import save
from torch import Tensor

from readapt_api.contract import Digest
from readapt_api.digest import digest_of
from readapt_api.errors import ReadaptError
from readapt_runtime.progress import Log
from readapt_runtime.safe_tensors import TensorFile, hash_tensors
from readapt_runtime.store import Store

_T = TypeVar("_T")
SAVE_EVERY_S = 30.0
_VERSION = 1
_STEPS = "json"


class Journal:
    """The records of one item."""

    def __init__(
        self,
        store: Store,
        input_hash: Digest,
        circumstances: Mapping[str, object],
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens what an earlier run left; ``circumstances`` are those of which equal ones give equal bytes."""
        self._store = store
        self._input_hash = input_hash
        self._circumstances = digest_of({"version": _VERSION, **circumstances})
        self._log = log
        self._clock = clock
        self._begin = self._saved = clock()
        self.earlier_seconds, self._steps = self._open()

    def once(self, step: str, kind: TypeAdapter[_T], work: Callable[[], _T]) -> _T:
        """The result of ``work``, which is not done when an earlier run has recorded ``step``.

        ``step`` names everything that the result depends on beyond item and circumstances; a dataclass, with floats
        that come back bit for bit. Raises what ``work`` and the store raise.
        """
        if step in self._steps:
            return kind.validate_python(self._steps[step])
        result = work()
        self._steps[step] = kind.dump_python(result)
        self._write_steps()
        return result

    def due(self) -> bool:
        """Whether it is so long ago that something was saved that a kill would cost more than it is worth."""
        return self._clock() - self._saved >= SAVE_EVERY_S

    def save(self, name: str, document: object, tensors: Mapping[str, Tensor]) -> None:
        """Replaces what is kept under ``name``. Raises StoreFull, StoreUnavailable, StoreDenied."""
        metadata = {
            "circumstances": self._circumstances,
            "document": json.dumps(document),
            "sha256": hash_tensors(tensors),
        }
        content = save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata=metadata)
        self._store.write_progress(self._input_hash, f"{name}.safetensors", content)
        self._write_steps()
        self._saved = self._clock()

    def load(self, name: str, restore: Callable[[Any, Mapping[str, Tensor]], _T]) -> _T | None:
        """What ``restore`` makes of the document and the tensors that an earlier run kept under ``name``.

        None when there is nothing, or nothing that fits.
        """
        path = self._store.progress(self._input_hash, f"{name}.safetensors")
        if not path.is_file():
            return None
        try:
            document, tensors = self._read_state(path)
            restored = restore(document, tensors)
        except (ReadaptError, OSError, ValueError, LookupError, TypeError) as error:
            self._ignore(path, error)
            return None
        self._log.info("going on", state=name)
        return restored

    def _read_state(self, path: Path) -> tuple[Any, Mapping[str, Tensor]]:
        with TensorFile(path) as file:
            self._check(file.metadata["circumstances"])
            tensors = {name: file.read(name) for name in file.infos}
            if hash_tensors(tensors) != file.metadata["sha256"]:
                raise ValueError("its bytes have changed")
            return json.loads(str(file.metadata["document"])), tensors

    def _write_steps(self) -> None:
        seconds = self.earlier_seconds + self._clock() - self._begin
        steps = json.dumps({"circumstances": self._circumstances, "seconds": seconds, "steps": self._steps}).encode()
        self._store.write_progress(self._input_hash, _STEPS, hashlib.sha256(steps).hexdigest().encode() + b"\n" + steps)

    def _open(self) -> tuple[float, dict[str, Any]]:
        path = self._store.progress(self._input_hash, _STEPS)
        if not path.is_file():
            return 0.0, {}
        try:
            named, _, content = path.read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != named:
                raise ValueError("its bytes have changed")
            document = json.loads(content)
            self._check(document["circumstances"])
        except (OSError, ValueError, LookupError) as error:
            self._ignore(path, error)
            return 0.0, {}
        self._log.info("going on", steps=len(document["steps"]), seconds=round(document["seconds"], 3))
        return document["seconds"], document["steps"]

    def _check(self, circumstances: object) -> None:
        if circumstances != self._circumstances:
            raise ValueError("made with other versions, another number format or other threads")

    def _ignore(self, path: Path, error: Exception) -> None:
        self._log.warning("progress ignored", file=path.name, why=" ".join(str(error).split())[:300])
