"""The circumstances under which numbers came about; equal ones give equal numbers."""

from __future__ import annotations

import optuna
import peft
import torch
import transformers

from readapt_runtime.adapt.base import LoadedBase, device_name
from readapt_runtime.adapt.scoring import METRIC_VERSION

EVIDENCE = "evidence.json"
"""In the output folder of a command."""


def circumstances(base: LoadedBase) -> dict[str, object]:
    """Versions, number format and threads; no host, no times."""
    libraries = {"torch": torch, "transformers": transformers, "peft": peft, "optuna": optuna}
    on_cpu = base.device.type == "cpu"
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(base.dtype).removeprefix("torch."),
        "processor": torch.backends.cpu.get_cpu_capability() if on_cpu else device_name(base.device),
        "metricVersion": METRIC_VERSION,
        "versions": {name: str(library.__version__) for name, library in libraries.items()},
    }
