"""Who may load what, tried in fresh interpreters, and the arrows between the packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TENSORS = ("torch", "transformers", "peft", "safetensors", "readapt_runtime", "readapt_kernels")
KUBERNETES = ("kopf", "kubernetes", "readapt_operator")
LOAD_ALL = """
import importlib, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
package = importlib.import_module(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps({"modules": len(names), "loaded": sorted(loaded)}))
"""


def loaded_by(package: str) -> set[str]:
    """Top-level names in sys.modules after every module of ``package`` was imported in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, package], capture_output=True, text=True, check=True, timeout=300, cwd="/"
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["modules"] > 0
    return set(result["loaded"])


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("readapt_api", (*TENSORS, *KUBERNETES)),
        ("readapt_operator", TENSORS),
        ("readapt_runtime", KUBERNETES),
    ],
)
def test_package_loads_nothing_of_the_others(package: str, forbidden: tuple[str, ...]) -> None:
    assert loaded_by(package) & set(forbidden) == set()


def test_a_machine_can_be_checked_before_anything_is_installed() -> None:
    """`make allowed`: by the system's Python, without any package."""
    check = "from readapt_cluster import cli, node; print(node.check.__module__, cli.main.__name__)"
    environment = {"PYTHONPATH": str(ROOT / "e2e" / "cluster"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", check], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "readapt_cluster.node main\n", done.stderr


def test_arrows_between_packages_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 0, done.stdout + done.stderr
