"""``readapt`` on directories: one JSON object, exit codes, a quick ``--help``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from readapt_api.digest import digest_path
from readapt_runtime.cli import run
from readapt_runtime.drift import read_drift

_HELP = """
import sys
from readapt_runtime.cli import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "starlette", "optuna"} & set(sys.modules)
sys.exit(code or bool(heavy))
"""


@pytest.mark.parametrize("command", [[], ["serve"], ["adapt"], ["extract"], ["drift"], ["digest"]], ids=str)
def test_help_loads_nothing_heavy_and_shows_how(command: list[str]) -> None:
    script = [sys.executable, "-c", _HELP, *command, "--help"]
    shown = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert f"readapt {' '.join(command)}".strip() in shown
    assert not command or "Example" in shown


def test_digest_prints_what_users_pin(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["digest", str(sources / "v1")]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == digest_path(sources / "v1")


def test_drift_and_extract_print_one_object(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drift = ["drift", "--from", str(sources / "v1"), "--to", str(sources / "v2"), "--out", str(tmp_path / "drift")]
    assert run(drift) == 0
    assert json.loads(capsys.readouterr().out)["moved"] == len(read_drift(tmp_path / "drift")) == 14
    folders = [
        "--base",
        str(sources / "v1"),
        "--finetuned",
        str(sources / "checkpoint"),
        "--out",
        str(tmp_path / "lora"),
    ]
    assert run(["extract", *folders, "--energy", "0.99"]) == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 8
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "lora").glob("adapter*")} == {0o644}


@pytest.mark.parametrize(
    "arguments",
    [
        ["digest", "/no/such/folder"],
        ["drift", "--from", "/no", "--to", "/no", "--out", "/no"],
        ["extract", "--base", "/no", "--finetuned", "/no", "--out", "/tmp/no", "--rank", "8", "--energy", "0.5"],
        ["extract", "--bse", "x"],
        ["sing"],
    ],
    ids=["missing folder", "missing base", "two ranks", "unknown option", "unknown command"],
)
def test_bad_input_is_said_and_has_its_exit_code(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err
