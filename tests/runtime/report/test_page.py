"""What the page tells, that it needs nothing else, and that nothing in it comes to life."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from readapt_api.jobs import Outcome
from readapt_runtime.cli import run
from readapt_runtime.progress import JsonLog
from readapt_runtime.report import figures
from readapt_runtime.report.findings import BadFindings, Findings, read_findings
from readapt_runtime.report.keeping import keep_report
from readapt_runtime.report.page import render
from readapt_runtime.report.verdict import Verdict, judge
from readapt_runtime.store import Store

HASH = "sha256:" + "a" * 64
VARIANT = "sha256:" + "b" * 64


class Read(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        self._table = self._reading = ""
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._reading = tag if tag in ("h1", "title") else found.get("id") or self._reading
        if tag == "table":
            self._table = found["id"] or ""
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False
        elif tag in ("h1", "title", "p"):
            self._reading = ""

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[self._table][-1][-1] += data
        self.texts[self._reading] = self.texts.get(self._reading, "") + data

    def rows(self, table: str) -> dict[str, list[str]]:
        return {row[0]: row[1:] for row in self.tables[table]}


@pytest.fixture(scope="module")
def page(sample: dict[str, Any]) -> Read:
    return Read(render(Findings.of_evidence(sample, VARIANT)))


def test_the_verdict_is_one_sentence_at_the_top(page: Read) -> None:
    assert page.texts["verdict"].strip().startswith("Passed as ReLoRA. ReLoRA: said.")
    assert ("p", {"class": "verdict passed", "id": "verdict"}) in page.tags


def test_an_exhausted_ladder_says_why(evidence: dict[str, Any]) -> None:
    evidence["rungs"][-1]["verdict"] = "Undecided"
    verdict = judge(Findings.of_evidence(evidence))
    assert verdict == Verdict("failed", "No variant passed after 2 rungs (GateUndecided). ReLoRA: said.")


def test_a_variant_that_undoes_the_update_has_not_passed(evidence: dict[str, Any]) -> None:
    evidence["rungs"][-1]["retention"] = 0.5
    assert judge(Findings.of_evidence(evidence)).sentence.startswith(
        "No variant passed after 2 rungs (RetentionTooLow)"
    )


def test_every_rung_is_a_row(page: Read) -> None:
    rows = page.rows("rungs")
    assert rows["ReLoRA"] == [
        *("Passed", "Accuracy", "91.0 %", "90.0 %", "+1.0", "-1.2 to +3.1", "900", "0.850", "0.720", "12.5")
    ]
    assert rows["Copied"][0] == "Failed"
    assert len(rows) == 3


def test_settings_digests_seconds_and_trials_are_there(page: Read, evidence: dict[str, Any], hostile: str) -> None:
    assert page.rows("settings")["gate.maxRegression"] == ["0.03"]
    assert page.rows("digests")["newBase"] == [evidence["request"]["newBase"]]
    assert page.rows("digests")["reference"] == [evidence["request"]["items"][0]["reference"]]
    assert page.rows("digests")["variant"] == [VARIANT]
    assert page.rows("seconds") == {"search": ["3.2"], "tuning": ["40.0"]}
    assert page.rows("trials")["3"] == ["1.000", "-0.500", "0.400", "0.500", "0.700"]
    assert page.rows("examples")["dropped from the gate, their prompt came before"] == ["4711"]
    assert page.rows("examples")["2 labels"] == [f"{hostile},  yes"]
    assert page.rows("made-with")["versions.torch"] == ["2.13.0"]


def test_what_was_expected_of_copy_stands_beside_what_was_measured(page: Read) -> None:
    rows = page.rows("forecast")
    assert rows["expected, points of Accuracy"] == ["6.0"]
    assert rows["mean error of such a forecast"] == ["2.5"]
    assert rows["measured by the gate"] == ["8.0"]
    assert rows["‖D‖ / ‖ΔW‖"] == ["4.250"]


def test_names_and_labels_of_users_are_text_and_nothing_else(page: Read, hostile: str) -> None:
    assert page.texts["h1"] == page.texts["title"] == f"{hostile}: repair"
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_page_loads_nothing(page: Read) -> None:
    links = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "data", "action") and not (value or "").startswith("#")
    ]
    assert links == []
    assert not [tag for tag, _ in page.tags if tag in ("link", "base", "form")]


def test_ids_are_unique_and_what_is_referred_to_is_there(page: Read) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    used = {str(value)[1:] for _, a in page.tags for name, value in a.items() if name == "xlink:href"}
    assert len(ids) == len(set(ids))
    assert used <= set(ids)


def test_an_extraction_shows_its_worst_modules_its_sidecar_and_its_warnings(
    extraction: dict[str, Any], tmp_path: Path, hostile: str
) -> None:
    (tmp_path / "support").mkdir()
    (tmp_path / "support" / "report.json").write_text(json.dumps(extraction))
    findings, place = read_findings(tmp_path / "support")
    text = render(findings)
    read = Read(text)
    assert place == tmp_path / "support" / "report.html"
    assert read.texts["h1"] == "support: extraction"
    assert "Rank 16 keeps 93.0% of the change in 6 modules; 2.0% of it is in the sidecar." in read.texts["verdict"]
    assert list(read.rows("modules"))[1:3] == ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    assert read.rows("sidecar")["model.norm.weight"] == ["2.000%", "no linear module"]
    assert "look at" in text
    assert "<script" not in text


def test_an_extract_job_shows_gate_and_spectra(evidence: dict[str, Any], extraction: dict[str, Any]) -> None:
    request = {"name": "support", "kind": "extract", "base": HASH, "energy": "0.95", "gate": {"maxRegression": "0.05"}}
    rungs = [evidence["rungs"][1] | {"origin": "Extracted"}]
    read = Read(render(Findings.of_evidence({"request": request, "rungs": rungs, "extraction": extraction})))
    assert {"gate", "energy"} <= {a.get("id") for tag, a in read.tags if tag == "figure"}
    assert read.rows("digests") == {"base": [HASH]}


LESSONS: list[dict[str, Any]] = [
    {"task": "cards", "losses": [0.9, 0.5, 0.25], "accuracies": [0.75], "rank": 4},
    {"task": "transfers", "losses": [0.75, 0.5], "accuracies": [0.5, 1.0], "rank": 4},
]


@pytest.mark.parametrize(
    ("kind", "title", "drawn"),
    [("train", "support: training", {"scores", "learning-1"}), ("learn", "support: learning", {"scores", "lessons"})],
)
def test_what_no_gate_judges_is_named_for_what_it_is_and_has_its_curves(
    kind: str, title: str, drawn: set[str], evidence: dict[str, Any]
) -> None:
    rung = evidence["rungs"][1] | {"origin": "Trained", "verdict": "NotNeeded", "retention": None}
    steps = [{"step": step, "score": 0.1 * step, "retention": None} for step in (0, 1, 2)]
    parts = {"curve": steps, "trainLosses": [0.5, 0.25], "best": 2} if kind == "train" else {"lessons": LESSONS}
    request = {"kind": kind, "name": "support", "base": HASH}
    read = Read(render(Findings.of_evidence({"request": request, "rungs": [rung], **parts})))
    assert read.texts["h1"] == title
    assert read.texts["verdict"].strip() == "Trained, with nothing to compare it with: ReLoRA: said."
    assert {a.get("id") for tag, a in read.tags if tag == "figure"} == drawn
    if kind == "learn":
        assert read.tables["lessons"][1:] == [["cards", "75.0%"], ["transfers", "50.0%", "100.0%"]]


def test_a_folder_of_lessons_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "lessons.json").write_text(json.dumps({"version": 1, "done": [], "lessons": LESSONS}))
    read = Read(render(read_findings(tmp_path)[0]))
    assert read.texts["h1"] == f"{tmp_path.name}: learning"
    assert read.texts["verdict"].strip().startswith("Learned one after the other: cards, transfers.")
    assert [a.get("id") for tag, a in read.tags if tag == "figure"] == ["lessons"]


def test_a_drift_shows_what_moved_most_how_far_and_in_which_directions(
    drift: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "drift.json").write_text(json.dumps(drift))
    assert run(["report", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "report.html")}
    read = Read((tmp_path / "report.html").read_text())
    assert read.texts["h1"] == f"{tmp_path.name}: drift"
    assert "4 of 6 linear modules moved, by 12.34% of the norm of all; 3 directions" in read.texts["verdict"]
    assert read.tables["modules"][1] == [
        *("model.layers.2.self_attn.q_proj", "0.4000", "75.00%", "3", "3, 1.5, 1"),
    ]
    assert len(read.tables["modules"]) == 5
    assert read.rows("rest")["model.norm.weight"] == ["0.5000"]
    assert {"norms", "energy"} == {a.get("id") for tag, a in read.tags if tag == "figure"}
    assert not [tag for tag, _ in read.tags if tag in ("script", "link", "img")]


def test_a_drift_without_singular_values_is_drawn_without_spectra(drift: dict[str, Any], tmp_path: Path) -> None:
    for module in drift["modules"].values():
        del module["singularValues"]
    (tmp_path / "drift.json").write_text(json.dumps(drift))
    read = Read(render(read_findings(tmp_path)[0]))
    assert [a.get("id") for tag, a in read.tags if tag == "figure"] == ["norms"]


def test_equal_versions_are_said_to_be_equal(drift: dict[str, Any], tmp_path: Path) -> None:
    for module in drift["modules"].values():
        module |= {"norm": 0.0, "singularValues": []}
    (tmp_path / "drift.json").write_text(json.dumps(drift | {"rest": {}}))
    read = Read(render(read_findings(tmp_path)[0]))
    assert read.texts["verdict"].strip() == "The versions are equal in all 6 linear modules."
    assert "modules" not in read.tables


def test_the_command_draws_a_folder_and_a_file_of_the_store(
    evidence: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evidence.json").write_text(json.dumps(evidence))
    assert run(["report", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "report.html")}
    store = Store(tmp_path / "store")
    store.write_evidence(HASH, evidence)
    store.write_result(HASH, Outcome(name="x", input_hash=HASH, passed=True, variant=VARIANT))
    assert run(["report", str(tmp_path / "store" / "results" / f"{'a' * 64}.evidence.json")]) == 0
    drawn = Path(json.loads(capsys.readouterr().out)["report"])
    assert drawn == tmp_path / "store" / "results" / f"{'a' * 64}.report.html"
    assert VARIANT in drawn.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "none of evidence.json, report.json, drift.json, lessons.json"),
        ("{", "evidence.json: "),
        ('{"request": 1}', "no evidence"),
        ("[]", ""),
    ],
    ids=["an empty folder", "no JSON", "another document", "a list"],
)
def test_what_is_no_evidence_is_bad_input(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "evidence.json").write_text(content)
    assert run(["report", str(tmp_path)]) == 64
    assert f"BadFindings: {tmp_path}" in (said := capsys.readouterr().err)
    assert message in said
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_drawn_costs_a_line_in_the_log_and_nothing_else(
    evidence: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, outcome = Store(tmp_path), Outcome(name="x", input_hash=HASH, passed=True, variant=VARIANT)
    kept = keep_report(store, outcome, evidence, JsonLog(sys.stderr))
    assert kept == outcome.model_copy(update={"report": f"results/{'a' * 64}.report.html"})
    assert (tmp_path / str(kept.report)).is_file()

    def broken(*_: object) -> str:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr(figures, "gate_intervals", broken)
    assert keep_report(store, outcome, evidence, JsonLog(sys.stderr)) == outcome
    assert "ZeroDivisionError('seven')" in capsys.readouterr().err


def test_evidence_of_another_shape_is_named() -> None:
    with pytest.raises(BadFindings, match="no evidence"):
        Findings.of_evidence({"request": {}})
