"""From options to a process that can serve: config, weights, pool, tokenizer, engine, adapters, each stage timed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from readapt_api.artifacts import MANIFEST
from readapt_api.contract import Digest
from readapt_api.digest import digest_path
from readapt_api.errors import Terminal
from readapt_api.serving import DesiredAdapter, DesiredSet
from readapt_runtime.daemon_threads import DaemonThreads
from readapt_runtime.device import choose_device
from readapt_runtime.engine.core import Event, Failure, NonFiniteLogits, Request, SamplingParams
from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.lora_format import AdapterReader
from readapt_runtime.model.backends import Bounds
from readapt_runtime.model.config import DecoderConfig, read_config
from readapt_runtime.parallel.crew import Crew
from readapt_runtime.parallel.rank import Plan
from readapt_runtime.parallel.ranks import start_ranks
from readapt_runtime.server.adapter_root import AdapterRoot
from readapt_runtime.server.host_images import HostedSource, HostImages
from readapt_runtime.server.limits import FULL_SHARD_RANK, Limits
from readapt_runtime.server.names import require_name
from readapt_runtime.server.registration import FolderSource, Packing, Source, StoreSource, folder_digest
from readapt_runtime.server.timed_reads import TimedReads, TimedSource
from readapt_runtime.server.tokens import Tokens
from readapt_runtime.store import Store

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_QUESTION = "Hi"
"""So short that nothing of it stays in the cache of prompt beginnings."""


class BadOptions(Terminal):
    """Options that contradict each other or what is on disk."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of ``readapt serve``, with names resolved."""

    base: Path
    served_name: str
    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 8081
    device: str = "auto"
    dtype: str = "auto"
    adapters: Mapping[str, Path] = field(default_factory=dict)
    set_dir: Path | None = None
    store: Path | None = None
    revision: str = "local"
    base_digest: Digest | None = None
    admin_public_key: Path | None = None
    admin_subject: str = ""
    api_key_file: Path | None = None
    adapter_root: Path | None = None
    tenant_header: str = ""
    tensor_parallel: int = 1
    full_shard_rank: int = FULL_SHARD_RANK
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require_name("--served-name", self.served_name)
        require_name("--revision", self.revision)
        if self.adapters and (self.set_dir or self.store):
            raise BadOptions("--adapter names folders, --set-dir and --store name variants: use one or the other")
        if self.set_dir and not self.store:
            raise BadOptions("--set-dir needs --store, where its variants are")
        if self.admin_public_key and not self.admin_subject:
            raise BadOptions("--admin-public-key needs --admin-subject: the key signs for the pods of other bases too")
        if self.adapter_root and not self.adapter_root.is_dir():
            raise BadOptions(f"--adapter-root: {self.adapter_root} is no folder")
        if self.tensor_parallel > 1 and self.device not in ("auto", "cpu", "cuda"):
            raise BadOptions(f"--tensor-parallel takes a device per rank, so --device {self.device} is one too few")
        if self.served_name in self.adapters:
            raise BadOptions(f"{self.served_name!r} is the name of the base and of an adapter")


@dataclass(frozen=True, slots=True)
class Machinery:
    """What startup builds; everything that needs no event loop."""

    base_digest: Digest
    config: DecoderConfig
    tokens: Tokens
    engine: Engine
    source: Source
    reads: TimedReads
    root: AdapterRoot | None
    dtype: str
    limits: Limits
    """Those of the options, within what the base can do."""
    given: DesiredSet | None
    """The adapters of the command line as a set; None when sets come from elsewhere."""
    crew: Crew | None
    """The processes of the other ranks; None for a model in one piece."""


def build(options: Options) -> Machinery:
    """Raises Terminal for whatever is wrong with the base, or with an adapter folder that does not exist."""
    device = choose_device(options.device)
    dtype = _dtype(options.dtype, device)
    with _stage("read config"):
        config = read_config(options.base)
        limits = options.limits.within(config.max_positions)
        config.require_length(limits.max_model_len)
        log.info("limits", extra=limits.describe())
        tokens = Tokens(options.base, config.vocab_size)
    with _stage("digest base"):
        base_digest = _base_digest(options)
    bounds = Bounds(limits.max_model_len, limits.max_batch_tokens, limits.max_in_flight, limits.max_rank)
    plan = Plan(options.base, dtype, str(device), limits.pool_bytes, bounds)
    with ExitStack() as unless_built:
        with _stage("load weights"):
            ranks = start_ranks(plan, config, options.tensor_parallel, options.full_shard_rank)
            unless_built.callback(ranks.close)
        engine_limits = EngineLimits(limits.max_batch_tokens, limits.max_in_flight)
        engine = Engine(ranks.model, ranks.pool, engine_limits, executor=DaemonThreads())
        with _stage("ask base"):
            _require_sound(engine, tokens, dtype)
        packing = Packing(AdapterReader(config.module_shapes, limits.max_rank), ranks.make_image)
        host_bytes = limits.host_room(_largest_adapter(config, limits.max_rank, dtype))
        images = HostImages(host_bytes // options.tensor_parallel, pinned=device.type == "cuda")
        with _stage("digest adapters"):
            source, given = _source(options, base_digest, packing)
        unless_built.pop_all()
    reads = TimedReads(limits.read_s)
    hosted = HostedSource(TimedSource(source, reads), images)
    root = AdapterRoot(options.adapter_root, base_digest, packing, images, reads) if options.adapter_root else None
    name = str(dtype).removeprefix("torch.")
    engine_facts = {"device": str(device), "dtype": name, "pages": ranks.pool.num_pages, "base": base_digest}
    engine_facts["host_bytes"] = host_bytes
    log.info("engine", extra={**engine_facts, "ranks": options.tensor_parallel})
    return Machinery(base_digest, config, tokens, engine, hosted, reads, root, name, limits, given, ranks.crew)


def _require_sound(engine: Engine, tokens: Tokens, dtype: torch.dtype) -> None:
    """One token of the base, before anybody else asks: its files may be sound and its numbers still overflow.

    Raises NonFiniteLogits.
    """
    events: list[Event] = []
    engine.add(Request(tokens.encode(_QUESTION) or (0,), SamplingParams(max_tokens=1), events.append))
    while engine.has_work:
        engine.step()
    for event in events:
        if isinstance(event, Failure):
            if isinstance(event.error, NonFiniteLogits):
                raise NonFiniteLogits(
                    f"the base answers NaN or infinity when it is computed in {dtype}"
                ) from event.error
            raise event.error


def _largest_adapter(config: DecoderConfig, max_rank: int, dtype: torch.dtype) -> int:
    """Bytes of the factors for every module."""
    return max_rank * sum(out + into for out, into in config.module_shapes.values()) * dtype.itemsize


def _source(options: Options, base: Digest, packing: Packing) -> tuple[Source, DesiredSet | None]:
    if options.store is not None:
        given = None if options.set_dir else DesiredSet(sequence=0, revision=options.revision, base=base)
        return StoreSource(Store(options.store), base, packing), given
    digests = {name: folder_digest(base, folder) for name, folder in options.adapters.items()}
    folders = {digests[name]: folder for name, folder in options.adapters.items()}
    wanted = tuple(DesiredAdapter(name=name, digest=digest) for name, digest in digests.items())
    given = DesiredSet(sequence=0, revision=options.revision, base=base, adapters=wanted)
    return FolderSource(base, folders, packing), given


def _base_digest(options: Options) -> Digest:
    """Of an artifact of a store the one that names it, every byte checked; else of the folder."""
    folder = options.base.resolve()
    if (folder / MANIFEST).is_file() and folder.parent.name == "artifacts":
        found = f"sha256:{folder.name}"
        Store(folder.parent.parent).open(found, verify=True)
    else:
        found = digest_path(options.base)
    if options.base_digest not in (None, found):
        raise BadOptions(f"{options.base} has the digest {found}, not --base-digest {options.base_digest}")
    return found


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    name = wanted.lower()
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise BadOptions(f"--dtype {wanted}: one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


@contextmanager
def _stage(name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    log.info("stage", extra={"stage": name, "seconds": round(time.monotonic() - start, 3)})
