"""What ``readapt drift`` foretells of a copied adapter, against dense fp64 and against PEFT."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from readapt_runtime.adapt import forecast
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.forecast import EXAMPLES, few
from readapt_runtime.cli import run
from readapt_runtime.drift import prediction
from readapt_runtime.drift.overlap import Overlap
from readapt_runtime.drift.prediction import Law, Prediction, facts
from readapt_runtime.examples import BadData
from readapt_testing.tiny_llama import Oracle, byte_tokenizer, write_adapter_folder, write_base

QUESTIONS = [Example(f"question {n}:", (" yes", " no")[n % 2]) for n in range(20)]


@pytest.fixture(scope="module")
def move(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1, v2 (another model of the same shapes), an adapter of v1 and examples."""
    root = tmp_path_factory.mktemp("move")
    for seed, name in enumerate(("v1", "v2")):
        write_base(root / name, seed=seed, layers=1)
    write_adapter_folder(root / "adapter", root / "v1", rank=4, seed=1)
    lines = [json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in QUESTIONS]
    (root / "examples.jsonl").write_text("\n".join(lines))
    return root


def drift(move: Path, out: Path, *options: str) -> int:
    return run(["drift", "--from", str(move / "v1"), "--to", str(move / "v2"), "--out", str(out), *options])


def likelihood_by_peft(base: Path, adapter: Path) -> float:
    """The geometric mean of the probabilities of each answer's tokens and its end, then the mean over examples."""
    model, tokenizer, found = Oracle(base).model(adapter), byte_tokenizer(), []
    for example in QUESTIONS:
        prompt = tokenizer(example.prompt)["input_ids"]
        ids = torch.tensor([*tokenizer(example.prompt + example.completion)["input_ids"], 256])
        with torch.inference_mode():
            logs = model(ids[None]).logits[0].double().log_softmax(-1)
        found.append(math.exp(float(logs[:-1].gather(1, ids[1:, None])[len(prompt) - 1 :].mean())))
    return sum(found) / len(found)


def _drifts(folder: Path) -> list[torch.Tensor]:
    factors = load_file(folder / "drift.safetensors")
    names = sorted({name.rpartition(".")[0] for name in factors})
    return [factors[f"{name}.left"].double() @ factors[f"{name}.right"].double() for name in names]


def _updates(folder: Path) -> list[torch.Tensor]:
    """alpha / r is 2 in these adapters."""
    factors = load_file(folder / "adapter_model.safetensors")
    return [2.0 * factors[name.replace("lora_A", "lora_B")] @ a for name, a in factors.items() if "lora_A" in name]


def _norm(matrices: list[torch.Tensor]) -> float:
    return math.hypot(*(float(matrix.norm()) for matrix in matrices))


def test_an_adapter_and_examples_are_foretold_from(
    move: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prediction, "BY_WEIGHTS", Law(slope=2.0, error=4.5))
    monkeypatch.setattr(forecast, "BY_EXAMPLES", Law(slope=50.0, error=1.5))
    adapter = move / "adapter"
    given = ["--adapter", str(adapter), "--examples", str(move / "examples.jsonl")]
    assert drift(move, tmp_path / "drift", *given) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["copy"]

    size = _norm(_drifts(tmp_path / "drift")) / _norm(_updates(adapter))
    assert found["size"] == pytest.approx(size, rel=1e-5)
    assert found["points"] == pytest.approx(min(100.0, 2.0 * size * found["read"] ** 0.5))
    assert found["error"] == 4.5

    seen = found["examples"]
    assert seen["samples"] == len(QUESTIONS)
    assert seen["old_likelihood"] == pytest.approx(likelihood_by_peft(move / "v1", adapter), rel=1e-4)
    assert seen["new_likelihood"] == pytest.approx(likelihood_by_peft(move / "v2", adapter), rel=1e-4)
    fall = seen["old_likelihood"] - seen["new_likelihood"]
    assert (seen["points"], seen["error"]) == (pytest.approx(max(0.0, 50.0 * fall)), 1.5)


def test_examples_are_asked_on_the_wished_device(move: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, load = [], forecast.load_base

    def noted(*given: Any, device: torch.device) -> Any:
        asked.append(device)
        return load(*given, device=device)

    monkeypatch.setattr(forecast, "load_base", noted)
    given = ["--adapter", str(move / "adapter"), "--examples", str(move / "examples.jsonl"), "--device", "cpu:0"]
    assert drift(move, tmp_path / "drift", *given) == 0
    assert asked == [torch.device("cpu:0")] * 2


def test_without_an_adapter_nothing_is_foretold(move: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift(move, tmp_path / "drift") == 0
    assert "copy" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--examples", "{move}/examples.jsonl"], "BadData: --examples are for the prediction"),
        (["--adapter", "{move}/v1"], "adapter_config.json: no such file"),
        (["--adapter", "{move}/adapter", "--examples", "{move}/few.jsonl"], "BadData: 3 examples, at least 8"),
        (["--adapter", "{move}/adapter", "--examples", "{move}/no.jsonl"], "no.jsonl"),
    ],
    ids=["examples alone", "no adapter", "few examples", "no examples"],
)
def test_bad_input_is_said_before_the_drift_is_measured(
    move: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    (move / "few.jsonl").write_text('{"prompt": "a", "completion": " b"}\n' * 3)
    assert drift(move, tmp_path / "drift", *(option.format(move=move) for option in options)) == 64
    assert says in capsys.readouterr().err
    assert list((tmp_path / "drift").iterdir()) == []


def test_the_few_do_not_depend_on_the_order_of_the_file() -> None:
    many = [Example(f"prompt {n}", " yes") for n in range(100)]
    assert few(many) == few(many[::-1])
    assert len(few(many)) == EXAMPLES
    with pytest.raises(BadData, match="7 examples, at least 8"):
        few(many[:7])


def test_predictions_are_losses_between_none_and_all() -> None:
    law = Law(slope=10.0, error=2.5)
    assert [law.at(x) for x in (0.5, -1.0, 1e9, math.inf)] == [
        Prediction(points, 2.5) for points in (5.0, 0.0, 100.0, 100.0)
    ]


def test_facts_are_json() -> None:
    """An adapter of zero has no size; JSON has no infinity."""
    found = facts(Overlap(math.inf, 0.5, 0.25, 0.0, {}))
    assert json.loads(json.dumps(found, allow_nan=False))["size"] is None
    assert facts(Overlap(0.0, 0.0, 0.0, 0.0, {})).get("points", 0.0) == 0.0
