"""The compiling process behind ``triton_modes.compiled``: launches as JSON in, what sm_90 makes of them as JSON out."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def main() -> None:
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    results = [_compile(launch) for launch in json.load(sys.stdin)]
    sys.stdout.write(json.dumps(results) + "\n")


def _compile(launch: dict[str, Any]) -> dict[str, Any]:
    kernel = getattr(importlib.import_module(launch["module"]), launch["kernel"])
    index = {name: i for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        signature=launch["signature"],
        constexprs=launch["constants"],
        attrs={(index[name],): [["tt.divisibility", 16]] for name in launch["multiples_of_16"]},
    )
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch["options"])
    report = log.getvalue()
    return {
        "ttir": made.asm["ttir"],
        "ptx": made.asm["ptx"],
        "registers": max(int(n) for n in re.findall(r"Used (\d+) registers", report)),
        "spill_bytes": sum(int(n) for n in re.findall(r"(\d+) bytes spill", report)),
        "shared_bytes": made.metadata.shared,
    }


if __name__ == "__main__":
    main()
