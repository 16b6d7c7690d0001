"""Two versions of a tiny Llama, an adapter and a full fine-tuned checkpoint of the first, and data to judge them by.

    FOLDER/v1, v2            the base, and the same after more training on another dialect
    FOLDER/adapter           PEFT, rank 8, trained on v1 to answer ``Question()``
    FOLDER/checkpoint        v1 with its linear weights trained to answer ``Question(shift=3)``
    FOLDER/data/adapter, data/checkpoint    train, validation and test of each

The base alone answers at chance, v2 costs a copied adapter far more than four points, a repair of it passes. Built in
under a minute on one core and kept in a cache outside the checkout, keyed by this code and the version of torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_CODE = ("tiny_models.py", "tiny_training.py", "tiny_language.py")


@dataclass(frozen=True, slots=True)
class TinyModels:
    """Folders; see the module."""

    root: Path

    @property
    def v1(self) -> Path:
        return self.root / "v1"

    @property
    def v2(self) -> Path:
        return self.root / "v2"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    def data(self, name: str, split: str) -> Path:
        """``name``: adapter or checkpoint."""
        return self.root / "data" / name / f"{split}.jsonl"

    def prompts(self, name: str, count: int) -> list[str]:
        """The first prompts of a test split."""
        with self.data(name, "test").open() as lines:
            return [json.loads(line)["prompt"] for line, _ in zip(lines, range(count), strict=False)]


def tiny_models(cache: Path) -> TinyModels:
    """The models out of ``cache``, built there first if they are missing.

    Another process builds them, so that seeds, threads and warnings of the test process do not matter.
    """
    root = cache / f"tiny-models-{_key()}"
    if not root.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            command = [sys.executable, "-W", "ignore", "-m", "readapt_testing.tiny_training", f"{scratch}/built"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"the tiny models were not built:\n{done.stderr[-4000:]}")
            if not root.exists():
                shutil.move(f"{scratch}/built", root)
    return TinyModels(root)


def _key() -> str:
    folder = Path(__file__).parent
    code = b"".join((folder / name).read_bytes() for name in _CODE)
    return hashlib.sha256(code + metadata.version("torch").encode()).hexdigest()[:16]
