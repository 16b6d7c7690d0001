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


def scripted(folder: Path, answers: object) -> Engine:
    """An engine that answers with the value of this expression, in which ``w`` is the workload it was told."""
    folder.mkdir(parents=True, exist_ok=True)
    runner = folder / "runner.py"
    runner.write_text(
        "import json, sys\n"
        "w = json.loads(sys.argv[1])['workload']\n"
        "if w['ranks']: sys.exit('no adapters here')\n"
        f"print(json.dumps({{'seconds': 1.0, 'answers': {answers}}}))\n"
    )
    return Engine([sys.executable, str(runner)], folder)


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Engine]:
    """What is measured beside, or in place of, our own engine: a peer that answers with the end of the alphabet."""
    ours = decode._engines
    asked = {"peer": scripted(tmp_path / "peer", "[[200] * w['output_tokens']] * w['requests']")}
    monkeypatch.setattr(decode, "_engines", lambda told, scratch: dict(ours(told, scratch)) | asked)
    monkeypatch.setattr(decode, "WORKLOADS", (BASE, MIXED))
    return asked


def cells(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line]


@pytest.mark.usefixtures("engines")
def test_every_engine_is_timed_judged_and_named_when_it_fails(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = decode.main(["--base", str(tiny.base), "--runs", "1", "--out", str(tmp_path / "out")])

    told = capsys.readouterr()
    lines = cells(told.out)
    assert code == 1
    assert "mixed: peer failed: exit code 1\nno adapters here" in told.err
    assert lines[0] == ["output tokens/s", OURS, "own W1 ÷ this", "peer", "we ÷ peer"]
    assert lines[2][3] == "10 ± 0 **wrong**"
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", lines[2][4])
    assert lines[3][3:] == ["failed", "–"]
    assert "wrong" not in lines[2][1] + lines[3][1]
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", lines[3][2])
    judged = {(line[0], line[1]): line[2:] for line in lines[6:]}
    assert set(judged) == {("base", OURS), ("mixed", OURS), ("base", "peer")}
    assert judged["base", OURS][2] == judged["mixed", OURS][2] == "0"
    assert judged["base", "peer"][2] == "**2**"
    record = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert record["base"]["tokensPerSecond"]["peer"] == [10.0]
    assert record["base"]["judged"]["peer"]["wrong"] == 2
    assert record["mixed"]["failed"].keys() == {"peer"}
    assert (tmp_path / "out" / "decode.svg").stat().st_size > 1000


@pytest.mark.parametrize(("wrong", "code"), [(OURS, 1), ("peer", 0)])
def test_wrong_answers_are_named_and_end_with_one_where_they_are_ours(
    wrong: str,
    code: int,
    tiny: Tiny,
    engines: dict[str, Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(decode, "first_difference", lambda *_: "")
    right = [tiny.oracle.greedy(None, prompt, BASE.output_tokens) for prompt in BASE.prompts()]
    one_off = [right[0], [*right[1][:-1], (right[1][-1] + 1) % 256]]
    for name in (OURS, "peer"):
        engines[name] = scripted(tmp_path / name, one_off if name == wrong else right)

    assert decode.main(["--base", str(tiny.base), "--runs", "1", "--only", "base"]) == code

    lines = cells(capsys.readouterr().out)
    speeds, judged = dict(zip(lines[0], lines[2], strict=True)), {line[1]: line[2:] for line in lines[5:]}
    for name in (OURS, "peer"):
        assert speeds[name] == ("10 ± 0 **wrong**" if name == wrong else "10 ± 0")
        assert judged[name][2] == ("**1**" if name == wrong else "0")
        assert judged[name][0] == ("90.0" if name == wrong else "100.0")


def test_where_every_engine_failed_the_record_says_so(
    tiny: Tiny, engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "first_difference", lambda *_: "")
    engines[OURS] = scripted(tmp_path / "ours", "None")
    out = tmp_path / "out"
    assert decode.main(["--base", str(tiny.base), "--runs", "1", "--only", "mixed", "--out", str(out)]) == 1
    record = json.loads((out / "decode.json").read_text())
    assert record["mixed"]["failed"].keys() == {OURS, "peer"}
    assert record["mixed"]["tokensPerSecond"] == record["mixed"]["judged"] == {}


@pytest.mark.usefixtures("engines")
def test_a_red_gate_reports_no_speed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode, "first_difference", lambda *_: "r8: token 0")
    assert decode.main(["--base", str(tiny.base)]) == 1
    assert capsys.readouterr() == ("", "no speed is reported: r8: token 0\n")


@pytest.mark.parametrize("answers", ["[[1, 2]]", "[[1, 2, 3, 4, 5]] * 3", "[[1, 2, 3, 4, 260]] * 2", "[1, 2]", "None"])
def test_an_engine_that_does_not_answer_all_that_was_asked_with_tokens_of_the_base_has_failed(
    answers: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = decode.Job(str(tiny.base), (), 1, BASE)
    found = decode.measure(job, {"peer": scripted(tmp_path, answers)}, runs=2)
    assert found.rates == {}
    assert capsys.readouterr().err.count("base: peer failed") == 1


def test_an_engine_that_failed_once_has_no_rate() -> None:
    found = Found(rates={OURS: [100.0, 120.0], "peer": [50.0]}, failed={"peer": "exit code 1"})
    assert table({BASE: found}, [OURS, "peer"], {}).splitlines()[2] == "| base | 110 ± 10 | – | failed | – |"


def test_adapters_of_a_workload_are_all_different(tiny: Tiny, tmp_path: Path) -> None:
    adapters = decode.write_adapters(tiny.base, tmp_path)
    for w in decode.WORKLOADS:
        paths = decode.folders(w, adapters)
        assert len({Path(path, "adapter_model.safetensors").read_bytes() for path in paths}) == len(w.ranks)


def test_a_ratio_has_its_spread_over_the_runs() -> None:
    found = {BASE: Found(rates={OURS: [100.0, 120.0, 110.0], "peer": [50.0, 40.0, 55.0]})}
    assert table(found, [OURS, "peer"], {}).splitlines()[2] == "| base | 110 ± 10 | – | 50 ± 8 | 2.00 ± 0.50 |"


def test_a_request_is_wrong_by_its_worst_token() -> None:
    assert Verdict.of([[0.0, 0.2], [0.0, 0.7], [0.0, float("nan")]]).wrong == 2
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
