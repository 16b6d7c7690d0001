"""What is generated or pinned agrees with its source, and nothing names the machine it was made on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from readapt_api.schema import crds

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
_MACHINE_PATHS = re.compile(r"(?<![\w.$}])/(?:root|work|home/\w+|Users/\w+)/\w")
_INDEX_URL = re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host|https?://", re.IGNORECASE)


def tracked() -> list[Path]:
    """Files that are in git or would be: not ignored."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def definitions(folder: Path) -> dict[str, Any]:
    """Name to definition of every CustomResourceDefinition declared in plain YAML below a folder."""
    found: dict[str, Any] = {}
    for path in sorted((*folder.rglob("*.yaml"), *folder.rglob("*.yml"))):
        text = path.read_text()
        if "kind: CustomResourceDefinition" in text and "{{" not in text:
            found |= {document["metadata"]["name"]: document for document in yaml.safe_load_all(text) if document}
    return found


@pytest.mark.parametrize("folder", ["crds", "charts"])
def test_definitions_are_those_of_the_models(folder: str) -> None:
    assert definitions(ROOT / folder) == {d["metadata"]["name"]: d for d in crds().values()}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_requirement_has_a_version_and_hashes(lock: Path) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^\s*#.*\n?", "", lock.read_text()).strip())

    assert entries
    assert [
        e for e in entries if not re.match(r"[A-Za-z0-9._-]+(\[[^\]]+\])?==\S+", e) or "--hash=sha256:" not in e
    ] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_name_no_index(lock: Path) -> None:
    assert _INDEX_URL.findall(lock.read_text()) == []


def test_there_are_lock_files() -> None:
    assert LOCKS


def test_nothing_names_the_machine_it_was_made_on() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), start=1)
        found += [
            f"{path.relative_to(ROOT)}:{n}: {line.strip()[:120]}" for n, line in lines if _MACHINE_PATHS.search(line)
        ]

    assert found == []
