"""probe.json beside a variant that is about to be published.

In: a staged PEFT folder and the Base artifact it belongs to. Out: ``probe.json`` in the folder. The base is loaded in
float32 for it, so a Job that has a loaded base already calls ``probe.record`` itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from readapt_api.artifacts import PROBE, Probe
from readapt_api.digest import canonical_json
from readapt_runtime.adapt.base import load_base
from readapt_runtime.probe import candidate_prompts, record
from readapt_runtime.store import Artifact


def write_probe(folder: Path, base: Artifact, texts: Iterable[str] = ()) -> Probe:
    """Records the probe of the adapter in ``folder`` and writes it there. Raises InertAdapter, NonFiniteAnswers."""
    loaded = load_base(base.path, base.manifest.digest, torch.float32)
    probe = record(loaded.model, folder, candidate_prompts(loaded.tokenizer, texts))
    save_probe(folder, probe)
    return probe


def save_probe(folder: Path, probe: Probe) -> None:
    (folder / PROBE).write_bytes(canonical_json(probe.to_wire()))
