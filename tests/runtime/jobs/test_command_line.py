"""``readapt`` on directories: one JSON object, exit codes, a quick ``--help``."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from readapt_api.digest import digest_path
from readapt_runtime.adapt import folders, repair, retention
from readapt_runtime.cli import run
from readapt_runtime.drift import command as drift_command
from readapt_runtime.drift import read_drift
from readapt_runtime.extract import verification
from readapt_runtime.out_folder import make_out

_HELP = """
import sys
from readapt_runtime.cli import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "starlette", "optuna"} & set(sys.modules)
sys.exit(code or bool(heavy))
"""


@pytest.mark.parametrize(
    "command", [[], ["serve"], ["train"], ["learn"], ["adapt"], ["extract"], ["drift"], ["digest"], ["report"]], ids=str
)
def test_help_loads_nothing_heavy_and_shows_how(command: list[str]) -> None:
    script = [sys.executable, "-c", _HELP, *command, "--help"]
    shown = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert f"readapt {' '.join(command)}".strip() in shown
    assert not command or "Example" in shown


@pytest.mark.parametrize(("command", "examples"), [("drift", 2), ("extract", 1), ("report", 2), ("serve", 1)])
def test_each_example_of_a_help_begins_a_line(command: str, examples: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert capsys.readouterr().out.count(f"\n readapt {command} ") == examples


def test_help_names_places_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """What stands in angle brackets would be taken for markup."""
    assert run(["serve", "--help"]) == 0
    assert " DIR/N/set.json" in capsys.readouterr().out


def test_digest_prints_what_users_pin(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["digest", str(sources / "v1")]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == digest_path(sources / "v1")


def test_drift_and_extract_print_one_object(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drift = ["drift", "--from", str(sources / "v1"), "--to", str(sources / "v2"), "--out", str(tmp_path / "drift")]
    assert run(drift) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["moved"] == len(read_drift(tmp_path / "drift")) == 14
    assert {len(module["singular_values"]) for module in said["most_moved"].values()} == {8}
    assert {'id="norms"', 'id="energy"'} <= set(
        re.findall(r'id="\w+"', (tmp_path / "drift" / "report.html").read_text())
    )
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
    assert 'id="energy"' in (tmp_path / "lora" / "report.html").read_text()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "lora").glob("adapter*")} == {0o644}


def test_an_extract_that_fails_its_own_check_is_not_left_behind(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verification, "_TOLERANCE", -1.0)
    folders = [
        "--base",
        str(sources / "v1"),
        "--finetuned",
        str(sources / "checkpoint"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(["extract", *folders, "--rank", "2"]) == 64
    assert "ExtractionFailed" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["digest", "no/such/folder"],
        ["digest", "/proc/self/mem"],
        ["drift", "--from", "no", "--to", "no", "--out", "out"],
        ["extract", "--base", "no", "--finetuned", "no", "--out", "out", "--rank", "8", "--energy", "0.5"],
        ["extract", "--bse", "x"],
        ["sing"],
    ],
    ids=["missing folder", "unreadable file", "missing base", "two ranks", "unknown option", "unknown command"],
)
def test_bad_input_is_said_and_has_its_exit_code(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err


def test_a_folder_that_is_not_there_is_named_as_it_was_given(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good, data = str(sources / "v1"), str(sources / "train.jsonl")
    adapt = ["adapt", "--old-base", good, "--train", data, "--validation", data]
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text("{")
    for arguments, message in (
        (["extract", "--base", good, "--finetuned", "no/pe", "--rank", "8"], "no/pe: no such folder"),
        (["drift", "--from", good, "--to", "no/pe"], "no/pe: no such folder"),
        (["drift", "--from", good, "--to", "empty"], "empty: no config.json"),
        (["drift", "--from", good, "--to", "cut"], "cut/config.json: not the JSON"),
        ([*adapt, "--new-base", "no/pe", "--adapter", str(sources / "adapter")], "no/pe: no such folder"),
        ([*adapt, "--new-base", good, "--adapter", "no/pe"], "no/pe/adapter_config.json: no such file"),
    ):
        assert run([*arguments, "--out", "out"]) == 64
        assert f": {message}" in capsys.readouterr().err


@pytest.mark.parametrize("max_rank", ["-1", "0", "513"])
def test_a_maximum_rank_out_of_bounds_is_said_to_be_that(max_rank: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["extract", "--base", "no", "--finetuned", "no", "--energy", "0.5", "--max-rank", max_rank]
    assert run([*command, "--out", "out"]) == 64
    assert f"BadPolicy: the maximum rank {max_rank} is not at least 1 and at most 512" in capsys.readouterr().err


@pytest.fixture
def adapting(sources: Path, tmp_path: Path) -> Callable[..., int]:
    """``readapt adapt`` from v1 to v2 with what a test replaces; to measure the drift is an error."""
    for split in ("train", "validation", "test"):
        lines = [{"prompt": f"{split} {i}", "completion": (" yes", " no")[i % 2]} for i in range(60)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given: dict[str, Path | str | None] = {
        "--old-base": sources / "v1",
        "--new-base": sources / "v2",
        "--adapter": sources / "adapter",
        **{f"--{split}": tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")},
        "--out": tmp_path / "out",
    }

    def adapt(**changes: Path | str | None) -> int:
        """None takes an option away."""
        options = given | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        kept = [(name, value) for name, value in options.items() if value is not None]
        return run(["adapt", *(str(part) for option in kept for part in option)])

    return adapt


class DriftMeasured(BaseException):
    """Too late."""


BAD_INPUT: dict[str, tuple[str, str | None, str]] = {
    "no test": ("test", None, "given: no such file"),
    "no train": ("train", None, "given: no such file"),
    "no adapter": ("adapter", None, "given/adapter_config.json: no such file"),
    "bad line": ("validation", '{"prompt": "a", "completion": "b"}\n{"prompt": 1}\n', "given line 2: "),
    "few examples": ("validation", '{"prompt": "a", "completion": " yes"}\n' * 3, "are left for"),
    "empty train": ("train", "", "1 to 256 distinct completions"),
    "label of its own": ("validation", '{"prompt": "a", "completion": " maybe"}\n' * 60, "none of train's 2 labels"),
    "no inputs": ("inputs", None, "given: no such file"),
    "bad inputs": ("inputs", '{"text": "a"}\n', "given line 1: needs a text under 'prompt'"),
}


@pytest.mark.parametrize(("option", "content", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_adapt_looks_at_all_its_input_before_it_measures_the_drift(
    option: str,
    content: str | None,
    message: str,
    adapting: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def too_late(*_: object) -> None:
        raise DriftMeasured

    monkeypatch.setattr(folders, "measure", too_late)
    with pytest.raises(DriftMeasured):
        adapting()
    if content is not None:
        (tmp_path / "given").write_text(content)
    capsys.readouterr()
    assert adapting(**{option: tmp_path / "given", "out": tmp_path / "again"}) == 64
    assert message in capsys.readouterr().err


NO_EXAMPLES: dict[str, str | None] = {"train": None, "validation": None, "test": None}
MISFITS: dict[str, tuple[dict[str, str | None], str]] = {
    "train alone": ({"validation": None}, "--train and --validation are given together"),
    "test alone": ({"train": None, "validation": None}, "--test only with them"),
    "nothing to agree on": (
        {**NO_EXAMPLES, "metric": "Agreement"},
        "no examples: give train and validation, or inputs",
    ),
    "labels from nowhere": ({**NO_EXAMPLES, "inputs": "inputs.jsonl"}, "Accuracy needs train and validation"),
    "loss from nowhere": (
        {**NO_EXAMPLES, "inputs": "inputs.jsonl", "metric": "TokenLoss"},
        "TokenLoss needs train and validation",
    ),
    "nothing to retrain on": (
        {**NO_EXAMPLES, "inputs": "inputs.jsonl", "metric": "Agreement", "policy": "Retrain"},
        "policy Retrain needs train and validation",
    ),
    "ReLoRA in the dark": ({"gate_mode": "Skip", "policy": "ReLoRA"}, "policy must be Auto or Copy, not ReLoRA"),
}


@pytest.mark.parametrize(("changes", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_together_is_said_before_anything_is_computed(
    changes: dict[str, str | None],
    message: str,
    adapting: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inputs.jsonl").write_text("".join(f'{{"prompt": "input {i}"}}\n' for i in range(200)))
    assert adapting(**changes) == 64
    assert message in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_skipped_gate_copies_the_weights_without_data(
    adapting: Callable[..., int], sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapting(**NO_EXAMPLES, gate_mode="Skip") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["passed"], said["origin"], said["reason"]) == (True, "Copied", "GateSkipped")
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "out", sources / "adapter")
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == digest_path(sources / "v2")


class Killed(BaseException):
    """The process ends here."""


def test_an_adapt_that_was_interrupted_goes_on_when_it_is_started_again(
    adapting: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured, out = [], tmp_path / "out"
    make_yardstick, losses = retention.make_yardstick, repair.text_losses

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(retention, "make_yardstick", lambda *a: measured.append("yardstick") or make_yardstick(*a))
    monkeypatch.setattr(repair, "text_losses", lambda *a: measured.append("retention") or losses(*a))
    monkeypatch.setattr(repair, "require_effect", lambda *_: None)  # random weights have none
    with monkeypatch.context() as patched:
        patched.setattr(repair, "compare", killed)
        with pytest.raises(Killed):
            adapting(policy="Copy")
    assert [path.name for path in out.iterdir()] == [".progress"]
    once = tuple(measured)
    assert (once[0], once.count("retention")) == ("yardstick", 1)
    assert adapting(policy="Copy") == 0
    assert tuple(measured) == once, "nothing is measured twice"
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    passed = json.loads(capsys.readouterr().out)["passed"]
    assert {path.name for path in out.iterdir()} - (adapter if passed else set()) == {"evidence.json", "report.html"}


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _no_more_words(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"added_tokens": [], "model": {"type": "Nope"}}')


def _smaller(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 259}))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tokenizer": (_no_tokenizer, "BadTokenizer: {}: no tokenizer.json"),
    "a tokenizer of no kind": (_no_more_words, "BadTokenizer: {}: tokenizer.json or tokenizer_config.json cannot be"),
    "other shapes": (
        _smaller,
        "BadWeights: {}: model.embed_tokens.weight: shape [260, 64], the config wants",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_base_that_does_not_load_is_said_in_our_words(
    damage: Callable[[Path], None],
    message: str,
    adapting: Callable[..., int],
    sources: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(sources / "v2", tmp_path / "damaged"))
    damage(folder)
    assert adapting(new_base=folder) == 64
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("readapt: ")]
    assert len(said) == 1
    assert said[0].startswith(f"readapt: {message.format(folder)}")


MOVE = ["--old-base", "no", "--new-base", "no", "--adapter", "no", "--train", "no", "--validation", "no"]
COMMANDS = {
    "drift": ["drift", "--from", "no", "--to", "no"],
    "extract": ["extract", "--base", "no", "--finetuned", "no", "--rank", "8"],
    "train": ["train", "--base", "no", "--train", "no", "--validation", "no"],
    "learn": ["learn", "--base", "no", "--task", "a=no"],
    "adapt": ["adapt", *MOVE],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "there is a file of that name"),
        ("file/out", "cannot be written: Not a directory"),
        ("/proc/out", "cannot be written: No such file or directory"),
        ("earlier", "not empty, adapter_config.json is there"),
    ],
    ids=["a file", "below a file", "not writable", "an earlier result"],
)
def test_out_is_judged_before_anything_is_read(
    command: list[str],
    out: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "adapter_config.json").write_text("mine")

    assert run([*command, "--out", out]) == 64
    assert f"BadOut: --out {out}: {message}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == (tmp_path / "earlier" / "adapter_config.json").read_text() == "mine"


def test_a_new_or_empty_folder_can_be_written(tmp_path: Path) -> None:
    for out in (tmp_path / "new" / "deep", tmp_path / "empty"):
        make_out(out)
        (out / ".DS_Store").write_text("x")
        make_out(out)
        assert [path.name for path in out.iterdir()] == [".DS_Store"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--learning-rate", "-0.1", "above 0 and at most 1"),
        ("--learning-rate", "0", "above 0 and at most 1"),
        ("--learning-rate", "nan", "above 0 and at most 1"),
        ("--max-regression", "3", "above 0 and below 1 (a share: 0.03 are 3 points)"),
        ("--max-regression", "0.99999999999999999", "above 0 and below 1"),
        ("--min-retention", "1.5", "at least 0 and at most 1"),
        ("--confidence", "0.5", "above 0.5 and at most 0.9999"),
        ("--trials", "3", "4"),
        ("--max-samples", "9", "10"),
        ("--batch-size", "1025", "1024"),
    ],
)
def test_settings_out_of_bounds_are_said(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMANDS["adapt"], "--out", str(tmp_path / "out"), option, value]) == 64
    # rich draws a box around it and breaks its lines.
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert f"Invalid value for '{option}'" in said
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied", "x"), OSError("two\nlines"), "\udcff"],
    ids=["permission", "of a library", "name that is not UTF-8"],
)
def test_what_files_bring_up_is_one_line(
    error: OSError | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, object]:
        raise error if isinstance(error, OSError) else UnicodeEncodeError("utf-8", error, 0, 1, "no surrogates")

    monkeypatch.setattr(drift_command, "run", fail)
    assert run([*COMMANDS["drift"], "--out", "out"]) == 64
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n"), said.err.startswith("readapt: ")) == ("", 1, True)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(drift_command, "run", lambda *_: [][0])
    assert run([*COMMANDS["drift"], "--out", "out"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("IndexError: list index out of range\n")
