"""The decode benchmark: whose tokens are judged, what a failed engine does to the table and the exit code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import decode
import pytest
from decode import OURS, Engine, Found, Verdict, table
from workloads import Workload

from readapt_testing.tiny_engine import Tiny, build_tiny

MIXED = Workload("mixed", (8, 16, 8), requests=4, prompt_tokens=6, output_tokens=5, vocabulary=256)
BASE = Workload("base", (), requests=2, prompt_tokens=6, output_tokens=5, vocabulary=256)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine that answers whatever was asked with the end of the alphabet, and fails where there are adapters."""
    runner = tmp_path / "runner.py"
    runner.write_text(
        "import json, sys\n"
        "job = json.loads(sys.argv[1])\n"
        "if job['adapters']: sys.exit('no adapters here')\n"
        "w = job['workload']\n"
        "print(json.dumps({'seconds': 1.0, 'answers': [[200] * w['output_tokens']] * w['requests']}))\n"
    )
    ours = decode._engines

    def engines(told: object, scratch: Path) -> object:
        yield from ours(told, scratch)  # type: ignore[arg-type]
        yield "peer", Engine([sys.executable, str(runner)], tiny_base)

    tiny_base = tmp_path
    monkeypatch.setattr(decode, "_engines", engines)
    monkeypatch.setattr(decode, "WORKLOADS", (BASE, MIXED))
    return "peer"


@pytest.mark.usefixtures("peer")
def test_every_engine_is_timed_judged_and_named_when_it_fails(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = decode.main(["--base", str(tiny.base), "--runs", "1", "--out", str(tmp_path / "out")])

    told = capsys.readouterr()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.out.splitlines() if line]
    assert code == 1
    assert "mixed: peer failed: exit code 1\nno adapters here" in told.err
    assert lines[0] == ["output tokens/s", OURS, "own W1 ÷ this", "peer", "we ÷ peer"]
    assert lines[2][3] == "10 ± 0"
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", lines[2][4])
    assert lines[3][3:] == ["failed", "–"]
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", lines[3][2])
    judged = {(line[0], line[1]): line[2:] for line in lines[6:]}
    assert set(judged) == {("base", OURS), ("mixed", OURS), ("base", "peer")}
    assert judged["base", OURS][2] == judged["mixed", OURS][2] == "0"
    assert judged["base", "peer"][2] == "**2**"
    record = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert record["base"]["tokensPerSecond"]["peer"] == [10.0]
    assert (tmp_path / "out" / "decode.svg").stat().st_size > 1000


@pytest.mark.usefixtures("peer")
def test_wrong_answers_of_ours_end_with_one(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode, "first_difference", lambda *_: "")
    run = decode._run

    def shifted(engine: Engine, job: object) -> tuple[float, list[list[int]]]:
        rate, answers = run(engine, job)  # type: ignore[arg-type]
        return rate, [[(token + 1) % 256 for token in answer] for answer in answers]

    monkeypatch.setattr(decode, "_run", shifted)
    assert decode.main(["--base", str(tiny.base), "--runs", "1", "--only", "base"]) == 1
    assert "| base | Readapt | 0.0 |" in capsys.readouterr().out


@pytest.mark.usefixtures("peer")
def test_a_red_gate_reports_no_speed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode, "first_difference", lambda *_: "r8: token 0")
    assert decode.main(["--base", str(tiny.base)]) == 1
    assert capsys.readouterr() == ("", "no speed is reported: r8: token 0\n")


@pytest.mark.parametrize("answer", ["[[1, 2]]", "[[1, 2, 3, 4, 5]] * 3", "None"])
def test_an_engine_that_does_not_answer_all_that_was_asked_has_failed(
    answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = tmp_path / "runner.py"
    runner.write_text(f"import json\nprint(json.dumps({{'seconds': 1.0, 'answers': {answer}}}))\n")
    job = decode.Job(str(tmp_path), (), 1, BASE)
    found = decode.measure(job, {"peer": Engine([sys.executable, str(runner)], tmp_path)}, runs=2)
    assert found.rates == {}
    assert "base: peer failed" in capsys.readouterr().err


def test_adapters_of_a_workload_are_all_different(tiny: Tiny, tmp_path: Path) -> None:
    adapters = decode.write_adapters(tiny.base, tmp_path)
    for w in decode.WORKLOADS:
        paths = decode.folders(w, adapters)
        assert len({Path(path, "adapter_model.safetensors").read_bytes() for path in paths}) == len(w.ranks)


def test_a_ratio_has_its_spread_over_the_runs() -> None:
    found = {BASE: Found(rates={OURS: [100.0, 120.0, 110.0], "peer": [50.0, 40.0, 55.0]})}
    assert table(found, [OURS, "peer"]).splitlines()[2] == "| base | 110 ± 10 | – | 50 ± 8 | 2.00 ± 0.50 |"


def test_a_request_is_wrong_by_its_worst_token() -> None:
    assert Verdict.of([[0.0, 0.2], [0.0, 0.7], [float("nan"), 0.0]]).wrong == 2
    assert Verdict.of([[0.0, 0.2], [0.0, 0.5]]) == Verdict(4, 2, 0.5, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "W9"], "--only W9: no workload's name has this in it"),
        (["--runs", "0"], "0: must be a whole number from 1 on"),
        (["--base", "/nope"], "/nope: no folder of a model"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bad_wish_is_refused_before_anything_runs(
    tiny: Tiny, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        decode.main(["--base", str(tiny.base), *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
