"""The benchmark of S-LoRA's workload: what it plans, refuses and tells of a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import slora
from traffic import SETTINGS, Profile

from readapt_runtime.lora_format import read_adapter
from readapt_testing.tiny_engine import Tiny, build_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


def test_each_change_is_a_row_of_its_own_in_every_setting() -> None:
    usual = Profile(adapters=20)
    rows = slora.plan(["S1", "S4"], usual, [("cv", 4.0), ("adapters", 5), ("cv", 1.0)])

    changed = [usual, Profile(adapters=20, cv=4.0), Profile(adapters=5)]
    assert rows == [slora.Row(setting, profile) for setting in ("S1", "S4") for profile in changed]
    assert rows[4].title == "S4 (r 64/32/16), 20 adapters, alpha 1, cv 4, 2/s"


def test_adapters_have_the_ranks_of_the_setting_in_turn(tiny: Tiny, tmp_path: Path) -> None:
    adapters = slora.write_adapters(tiny.base, tmp_path, SETTINGS["S4"], 5)

    found = [read_adapter(folder, tiny.config.module_shapes).modules for folder in adapters.values()]
    assert [{module.rank for module in modules.values()} for modules in found] == [{64}, {32}, {16}, {64}, {32}]
    assert list(adapters) == ["a0", "a1", "a2", "a3", "a4"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--settings", "S1,S9"], "S9; there are S1, S2"),
        (["--vary", "ranks=3"], "ranks; there are adapters, alpha, cv, rate"),
        (["--vary", "cv=big"], "--vary"),
        (["--vary", "rate=0"], "rate must be positive"),
        (["--runs", "0"], "0: must be a whole number from 1 on"),
        (["--base", "/nope"], "/nope: no folder of a model"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[1],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: str, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = slora.main(["--base", str(tiny.base), *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_a_server_is_asked_the_whole_workload_and_every_answer_has_its_length(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--settings", "S2", "--adapters", "6", "--vary", "cv=4", "--rate", "20", "--duration", "1"]
    arguments += ["--lengths", "0.05", "--runs", "2", "--pool", "16Mi", "--slo", "30"]
    arguments += ["--scratch", str(tmp_path), "--out", str(tmp_path / "out")]

    assert slora.main(["--base", str(tiny.base), *arguments]) == 0

    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[2:]] == [
        "S2 (r 64/32/16/8), 6 adapters, alpha 1, cv 1, 20/s",
        "S2 (r 64/32/16/8), 6 adapters, alpha 1, cv 4, 20/s",
    ]
    assert all(line[1:3] == ["Readapt", "40 / 40"] and line[-1] == "100 ± 0" for line in lines[2:])
    (usual, bursty) = json.loads((tmp_path / "out" / "slora.json").read_text())
    told = [outcome["tokens"] for run in usual["runs"]["Readapt"] for outcome in run]
    profile = slora.Profile(6, rate=20.0, duration_s=1.0).scaled(lengths=0.05)
    assert told == [a.output_tokens for seed in (42, 43) for a in slora.generate(profile, seed)]
    assert bursty["profile"]["cv"] == 4
    assert (tmp_path / "out" / "slora-1.svg").stat().st_size > 1000
