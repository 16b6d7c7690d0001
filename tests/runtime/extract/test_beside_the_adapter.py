"""What an adapter cannot hold: accounted for to the last tensor, compared by token, kept in a base if wished."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from readapt_runtime.drift import DRIFT_REPORT, measure
from readapt_runtime.extract import ExtractReport, Options, RankPolicy, extract
from readapt_runtime.progress import JsonLog
from readapt_runtime.safe_tensors import BadWeights
from readapt_runtime.vocabulary import UnknownVocabulary, match_rows
from readapt_testing.tiny_families import FAMILIES, write_family

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LOG = JsonLog(io.StringIO())
EMBEDDING = "model.embed_tokens.weight"
Edit = Callable[[dict[str, torch.Tensor]], object]
Make = Callable[[Edit], Path]
Change = Callable[..., Edit]


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def with_two_words_after(row: int, model: dict[str, Any]) -> None:
    """Two new tokens in the middle; all that follow move on by two."""
    vocab = model["model"]["vocab"]
    model["model"]["vocab"] = {token: at + 2 * (at >= row) for token, at in vocab.items()} | {"aa": row, "bb": row + 1}
    for token in model["added_tokens"]:
        token["id"] += 2


@pytest.fixture
def with_new_words(base: Path, edited: Make, low_rank_change: Change) -> Path:
    """A checkpoint with two new tokens as rows 100 and 101, another value in the row of "z", and other norms."""
    change = low_rank_change(seed=1, rank=3)
    z = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]["z"]
    assert z != 100

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        change(tensors)
        rows = tensors[EMBEDDING].clone()
        rows[z] += 3.0
        tensors[EMBEDDING] = torch.cat([rows[:100], torch.full((2, 64), 2.0), rows[100:]])
        tensors["model.norm.weight"] *= 1.5

    folder = edited(edit)
    edit_json(folder / "tokenizer.json", lambda model: with_two_words_after(100, model))
    edit_json(folder / "config.json", lambda config: config.update(vocab_size=262))
    return folder


def test_rows_are_compared_by_their_token_and_not_by_their_number(
    base: Path, with_new_words: Path, tmp_path: Path
) -> None:
    report = extract(base, with_new_words, tmp_path / "out", RankPolicy(fixed=8), LOG).report
    found = report.sidecar[EMBEDDING]
    assert found.rows is not None
    assert (found.rows.changed, found.rows.added, found.rows.removed) == (1, 2, 0)
    assert found.rows.moved == 260 - 100
    assert found.norm == pytest.approx((2 * 64 * 2.0**2 + 64 * 3.0**2) ** 0.5, rel=1e-6)
    assert load_file(tmp_path / "out" / "sidecar.safetensors")[EMBEDDING].shape == (262, 64)
    assert any("2 rows added, 0 removed, 160 moved" in warning for warning in report.warnings)

    measure(base, with_new_words, tmp_path / "drift", LOG)
    relative = json.loads((tmp_path / "drift" / DRIFT_REPORT).read_text())["rest"][EMBEDDING]
    assert relative == pytest.approx(found.norm / float(load_file(base / "model.safetensors")[EMBEDDING].norm()))


def test_tokens_that_are_gone_count_with_all_they_had(base: Path, with_new_words: Path, tmp_path: Path) -> None:
    report = extract(with_new_words, base, tmp_path / "out", RankPolicy(fixed=8), LOG).report
    found = report.sidecar[EMBEDDING]
    assert found.rows is not None
    assert (found.rows.changed, found.rows.added, found.rows.removed) == (1, 0, 2)
    assert found.norm == pytest.approx((2 * 64 * 2.0**2 + 64 * 3.0**2) ** 0.5, rel=1e-6)


def test_a_vocabulary_sorted_anew_has_not_changed(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    change = low_rank_change(seed=1, rank=3)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        change(tensors)
        tensors[EMBEDDING] = torch.cat([tensors[EMBEDDING][:256].flip(0), tensors[EMBEDDING][256:]])

    def reverse(model: dict[str, Any]) -> None:
        model["model"]["vocab"] = {token: 255 - at for token, at in model["model"]["vocab"].items()}

    folder = edited(edit)
    edit_json(folder / "tokenizer.json", reverse)
    report = extract(base, folder, tmp_path / "out", RankPolicy(fixed=8), LOG).report
    assert report.sidecar == {}
    assert report.skipped[EMBEDDING] == "unchanged"
    assert any("256 moved" in warning for warning in report.warnings)


@pytest.mark.parametrize("kind", ["pieces", "words"])
def test_both_forms_of_a_vocabulary_are_read(tmp_path: Path, kind: str) -> None:
    for name, tokens in (("old", ["a", "b", "c"]), ("new", ["c", "x", "a"])):
        pieces, words = [[token, 0.5] for token in tokens], {token: at for at, token in enumerate(tokens)}
        (tmp_path / name).mkdir()
        vocab = pieces if kind == "pieces" else words
        added = [{"id": 3, "content": "</s>"}]
        text = json.dumps({"model": {"vocab": vocab}, "added_tokens": added})
        (tmp_path / name / "tokenizer.json").write_text(text)
    match = match_rows(tmp_path / "old", tmp_path / "new", 6, 5)
    assert match.old_rows is not None
    assert match.old_rows.tolist() == [2, -1, 0, 3, 4]  # row 4 is padding on both sides
    assert match.removed == (1, 5)


@pytest.mark.parametrize("missing", ["old", "new"])
def test_without_a_tokenizer_nobody_guesses_which_rows_belong_together(
    base: Path, with_new_words: Path, tmp_path: Path, missing: str
) -> None:
    old = Path(shutil.copytree(base, tmp_path / "old"))
    ({"old": old, "new": with_new_words}[missing] / "tokenizer.json").unlink()
    with pytest.raises(UnknownVocabulary, match=r"tokenizer\.json: no such file.*260 and 262 rows"):
        extract(old, with_new_words, tmp_path / "out", RankPolicy(fixed=8), LOG)


def test_a_checkpoint_without_a_tokenizer_has_that_of_its_base(
    base: Path, edited: Make, low_rank_change: Change, tmp_path: Path
) -> None:
    folder = edited(low_rank_change(seed=1, rank=3))
    (folder / "tokenizer.json").unlink()
    report = extract(base, folder, tmp_path / "out", RankPolicy(fixed=8), LOG, Options(merged_base=True)).report
    assert report.skipped[EMBEDDING] == "unchanged"
    merged = tmp_path / "out" / "merged-base"
    assert (merged / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "content",
    ["{", "{}", '{"model": {"vocab": 3}}', '{"model": {"vocab": {"a": "b"}}}', '{"model": {"vocab": {"a": -1}}}'],
)
def test_a_tokenizer_that_cannot_be_read_is_named(
    base: Path, with_new_words: Path, tmp_path: Path, content: str
) -> None:
    (with_new_words / "tokenizer.json").write_text(content)
    with pytest.raises(BadWeights, match=r"tokenizer\.json"):
        extract(base, with_new_words, tmp_path / "out", RankPolicy(fixed=8), LOG)


@pytest.mark.parametrize("family", ["qwen2", "qwen3 untied, biased, yarn", "llama untied, biased, llama3"])
def test_every_tensor_is_accounted_for_once(tmp_path: Path, family: str) -> None:
    """In the adapter, in the sidecar or skipped with a reason; the shares are those of the dense differences."""
    old, new = (write_family(tmp_path / str(seed), FAMILIES[family], seed) for seed in (0, 1))
    report = extract(old, new, tmp_path / "out", RankPolicy(fixed=4, targets=("q_proj", "down_proj")), LOG).report
    extracted = [f"{name}.weight" for name in report.modules]
    places = [*extracted, *report.sidecar, *report.skipped]
    before, after = (load_file(folder / "model.safetensors") for folder in (old, new))
    assert sorted(places) == sorted(after)
    moved = {name: float((after[name].double() - before[name].double()).square().sum()) for name in after}
    total = sum(moved.values())
    assert report.norm == pytest.approx(total**0.5, rel=1e-6)
    for name, entry in report.sidecar.items():
        assert entry.share == pytest.approx(moved[name] / total, rel=1e-6)
    for name, module in report.modules.items():
        assert module.norm == pytest.approx(moved[f"{name}.weight"] ** 0.5, rel=1e-6)
        assert module.residual == pytest.approx(module.relative_error * module.norm)
    assert sum(entry.share for entry in report.sidecar.values()) == pytest.approx(report.sidecar_share)
    assert report.parameters == sum(m.rank * sum(m.shape) for m in report.modules.values())
    assert {report.skipped[name] for name in report.skipped} <= {"unchanged"}


def test_a_head_that_repeats_the_embedding_is_no_change_of_its_own(
    base: Path, edited: Make, tmp_path: Path, low_rank_change: Change
) -> None:
    change = low_rank_change(seed=1, rank=3)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        change(tensors)
        tensors[EMBEDDING] += 1.0
        tensors["lm_head.weight"] = tensors[EMBEDDING].clone()

    report = extract(base, edited(edit), tmp_path / "out", RankPolicy(fixed=8), LOG).report
    assert report.skipped["lm_head.weight"] == "a copy of the embedding"
    assert list(report.sidecar) == [EMBEDDING]


def test_what_no_tensor_holds_is_said(base: Path, edited: Make, low_rank_change: Change, tmp_path: Path) -> None:
    folder = edited(low_rank_change(seed=1, rank=3))
    edit_json(folder / "config.json", lambda config: config.update(rms_norm_eps=0.5))
    report = extract(base, folder, tmp_path / "out", RankPolicy(fixed=8), LOG).report
    assert any(
        w.startswith("config.json: rms_norm_eps is") and w.endswith("0.5: an adapter does not carry that")
        for w in report.warnings
    )


def logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.tensor([tokens])).logits[0]
    return answer


@pytest.mark.parametrize("shards", ["1MB", "60KB"])
def test_the_merged_base_with_the_adapter_is_the_checkpoint(
    base: Path, with_new_words: Path, tmp_path: Path, shards: str
) -> None:
    """As transformers and PEFT load them; new tokens included."""
    checkpoint = AutoModelForCausalLM.from_pretrained(with_new_words, dtype=torch.float32)
    checkpoint.save_pretrained(tmp_path / "sharded", max_shard_size=shards)
    shutil.copy(with_new_words / "tokenizer.json", tmp_path / "sharded")
    out = tmp_path / "out"
    extract(base, tmp_path / "sharded", out, RankPolicy(fixed=8), LOG, Options(merged_base=True))

    merged = AutoModelForCausalLM.from_pretrained(out / "merged-base", dtype=torch.float32)
    tokens = [100, 5, 101, 200, 261, 30]
    expected = logits(checkpoint, tokens)
    assert not torch.allclose(logits(merged, tokens), expected, rtol=1e-2, atol=1e-2)
    both = PeftModel.from_pretrained(merged, str(out))
    torch.testing.assert_close(logits(both, tokens), expected, rtol=1e-3, atol=1e-3)
    served, original = (load(folder) for folder in (out / "merged-base", base))
    assert all(torch.equal(served[name], original[name]) for name in original if "_proj" in name)
    names = {path.name for path in (out / "merged-base").glob("*.safetensors")}
    assert names == {path.name for path in (tmp_path / "sharded").glob("*.safetensors")}


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def test_a_report_of_an_earlier_version_is_read() -> None:
    document = {
        "version": 1, "rank": 8, "norm": 1.0, "energy": 0.9, "sidecarShare": 0.0, "relativeError": 0.3,
        "modules": {}, "sidecar": {}, "unchanged": 0, "warnings": [],
    }  # fmt: skip
    assert ExtractReport.model_validate(document).skipped == {}
