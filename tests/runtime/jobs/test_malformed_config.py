"""A config.json that makes no sense ends every command with exit code 64 and one line that names the field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from readapt_api.errors import EXIT_BAD_INPUT
from readapt_api.jobs import FetchRequest, FetchRole, FetchSource
from readapt_runtime.cli import run

CHANGES: dict[str, dict[str, object]] = {
    "num_key_value_heads": {"num_key_value_heads": 0},
    "hidden_size": {"hidden_size": "64"},
    "head_dim": {"head_dim": 0},
    "vocab_size": {"vocab_size": -1},
    "num_hidden_layers": {"num_hidden_layers": 10**9},
    "max_position_embeddings": {"max_position_embeddings": -5},
    "rope_theta": {"rope_theta": None},
}
OF_NO_CONCERN_TO_TENSORS: dict[str, dict[str, object]] = {
    "rms_norm_eps": {"rms_norm_eps": "small"},
    "eos_token_id": {"eos_token_id": [1, "x"]},
    "pad_token_id": {"pad_token_id": 10**9},
}


@pytest.fixture
def broken(sources: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(change: dict[str, object]) -> Path:
        folder = Path(shutil.copytree(sources / "v2", tmp_path / "broken"))
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        return folder

    return make


def _commands(broken: Path, sources: Path, out: Path) -> dict[str, list[str]]:
    good = str(sources / "v1")
    data = [f"--{split}={out.parent / 'data.jsonl'}" for split in ("train", "validation")]
    bases = ["--old-base", good, "--new-base", str(broken)]
    return {
        "serve": ["serve", "--base", str(broken), "--port", "0", "--admin-port", "0"],
        "drift": ["drift", "--from", good, "--to", str(broken), "--out", str(out)],
        "extract": ["extract", "--base", good, "--finetuned", str(broken), "--rank", "4", "--out", str(out)],
        "adapt": ["adapt", *bases, "--adapter", str(sources / "adapter"), *data, "--out", str(out)],
    }


@pytest.mark.parametrize(("field", "change"), CHANGES.items(), ids=CHANGES.keys())
@pytest.mark.parametrize("command", ["serve", "drift", "extract", "adapt"])
def test_commands_name_the_folder_and_the_field(
    command: str,
    field: str,
    change: dict[str, object],
    broken: Callable[..., Path],
    sources: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = broken(change)
    lines = [json.dumps({"prompt": f"question {i}", "completion": " yes"}) for i in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    assert run(_commands(folder, sources, tmp_path / "out")[command]) == EXIT_BAD_INPUT
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("readapt: ")]
    assert len(said) == 1
    assert f"{folder}/config.json: " in said[0]
    assert field in said[0]


@pytest.mark.parametrize(
    ("field", "change"),
    (CHANGES | OF_NO_CONCERN_TO_TENSORS).items(),
    ids=(CHANGES | OF_NO_CONCERN_TO_TENSORS).keys(),
)
def test_fetch_names_the_source_and_the_field(
    field: str, change: dict[str, object], broken: Callable[..., Path], bench: Any
) -> None:
    source = FetchSource(uri="pvc://models/broken", path=str(broken(change)))
    ended = bench.run(FetchRequest(role=FetchRole.BASE, sources=(source,)))
    assert (ended.code, ended.summary.reason) == (EXIT_BAD_INPUT, "UnsupportedModel")
    assert field in ended.summary.message
    assert "\n" not in ended.summary.message
    assert str(bench.store.root) not in ended.summary.message
