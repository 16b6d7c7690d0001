"""Role Data: the splits of a task, validated line by line and stored under one pair of keys.

In: JSON Lines files, one per split. Out: a Data artifact with ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``
(lines ``{"completion": ..., "prompt": ...}``) and ``inputs.jsonl`` (lines ``{"prompt": ...}``), as far as they were
given. Its digest is that of these files: sources that differ in field names or white space alone are one data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from readapt_api.artifacts import ArtifactKind
from readapt_api.digest import canonical_json
from readapt_api.jobs import FetchOutcome, FetchRequest, FetchSource
from readapt_runtime.examples import BadData, read_pairs, read_prompts
from readapt_runtime.jobs.fetch.source import SourceChanged, hash_source
from readapt_runtime.progress import Log
from readapt_runtime.store import Store

LABELLED = ("train", "validation")
"""Given together; ``test`` may go with them."""
INPUTS = "inputs"
"""Prompts alone; may be all there is."""


def fetch_data(request: FetchRequest, store: Store, log: Log) -> FetchOutcome:
    """Raises BadData with file and line number."""
    sources = _by_split(request)
    samples: dict[str, int] = {}
    with store.stage() as folder:
        for split, source in sources.items():
            samples[split] = _normalise(source, folder / f"{split}.jsonl", request)
            log.info("split read", split=split, examples=samples[split])
        manifest = store.publish(ArtifactKind.DATA, folder)
    return FetchOutcome(
        input_hash=request.input_hash,
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        files=len(manifest.files),
        samples=samples,
    )


def _by_split(request: FetchRequest) -> dict[str, FetchSource]:
    sources = {source.name: source for source in request.sources}
    labelled = sources.keys() - {INPUTS}
    whole = set(LABELLED) <= labelled <= {*LABELLED, "test"} if labelled else INPUTS in sources
    if not whole or len(sources) != len(request.sources):
        wanted = "data needs train and validation, and may have test, or needs inputs, once each"
        raise BadData(f"{wanted}; got {sorted(s.name for s in request.sources)}")
    return sources


def _normalise(source: FetchSource, target: Path, request: FetchRequest) -> int:
    hashed = hash_source(source)
    path = _the_file(source)
    count = 0
    with target.open("wb") as stream:
        for line in _lines(path, source, request):
            stream.write(canonical_json(line) + b"\n")
            count += 1
    if not count:
        raise BadData(f"{source.uri}: no examples")
    if hash_source(source.model_copy(update={"digest": None})).digest != hashed.digest:
        raise SourceChanged(f"{source.uri} changed while it was being read")
    return count


def _lines(path: Path, source: FetchSource, request: FetchRequest) -> Iterator[dict[str, str]]:
    if source.name == INPUTS:
        yield from ({"prompt": prompt} for prompt in read_prompts(path, source.uri, request.prompt_field))
        return
    for prompt, completion in read_pairs(path, source.uri, request.prompt_field, request.completion_field):
        yield {"completion": completion, "prompt": prompt}


def _the_file(source: FetchSource) -> Path:
    """A source is a file, or a folder with the one file that belongs to the split."""
    path = Path(source.path)
    if path.is_file():
        return path
    named = path / f"{source.name}.jsonl"
    if named.is_file():
        return named
    raise BadData(f"{source.uri}: a folder without {named.name}")
