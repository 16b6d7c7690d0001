"""PEFT folders, with PEFT itself as the judge of what an adapter does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from readapt_api.artifacts import ArtifactKind
from readapt_runtime.lora_format import (
    AdapterReader,
    LoraAdapter,
    LoraModule,
    linear_shapes,
    read_adapter,
    write_adapter,
)
from readapt_runtime.model.family import UnsupportedModel
from readapt_runtime.safe_tensors import BadWeights
from readapt_runtime.store import CorruptArtifact, Store
from readapt_testing.tiny_llama import ALL_MODULES, write_adapter_folder, write_base

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

PREFIX = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base", layers=2)


@pytest.fixture(scope="module")
def shapes(base: Path) -> dict[str, Any]:
    return linear_shapes(json.loads((base / "config.json").read_text()))


@pytest.fixture(scope="module")
def native(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter_folder(tmp_path_factory.mktemp("native") / "adapter", base, rank=4, seed=1)


@pytest.fixture
def adapter(native: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(native, tmp_path / "adapter"))


def deltas(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT adds to each weight, by merging."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    merged = PeftModel.from_pretrained(plain, str(adapter), autocast_adapter_dtype=False).double().merge_and_unload()
    after = merged.state_dict()
    changed = {n.removesuffix(".weight"): after[n] - before[n] for n in before if not torch.equal(after[n], before[n])}
    return changed


def ours(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    return {name: m.scale * m.b.double() @ m.a.double() for name, m in adapter.modules.items()}


def assert_same_function(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_the_linear_shapes_are_those_of_the_model(base: Path, shapes: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    linear = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert shapes == linear


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7}},
        {"alpha_pattern": {"model.layers.0.self_attn.k_proj": 3}, "rank_pattern": {"k_proj": 5}},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": r".*layers\.1\.(self_attn\.[qv]_proj|mlp\.up_proj)"},
        {"target_modules": "All-Linear"},
        {"exclude_modules": ["v_proj", "model.layers.0.mlp.up_proj"]},
        {"target_modules": ["q_proj", "model.layers.1.mlp.gate_proj"]},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_what_is_read_is_what_peft_computes(
    base: Path, shapes: dict[str, Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": list(ALL_MODULES), **options}
    config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(tmp_path / "adapter")

    found = read_adapter(tmp_path / "adapter", shapes)

    assert_same_function(ours(found), deltas(base, tmp_path / "adapter"))


def test_a_reader_takes_nothing_of_an_adapter_for_another_one(
    base: Path, shapes: dict[str, Any], native: Path, tmp_path: Path
) -> None:
    """Headers and configs that are equal are judged once; here always one of them is, and the other is not."""
    changes = {
        "alpha": set_option(lora_alpha=40),
        "values": edit_tensors(lambda t: t[f"{PREFIX}{Q}.lora_B.weight"].mul_(2)),
        "short": edit_tensors(lambda t: swap(t, f"{Q}.lora_A.weight", torch.ones(3, 64))),
        "fewer": set_option(target_modules=["q_proj"]),
    }
    alpha, values, short, fewer = (Path(shutil.copytree(native, tmp_path / name)) for name in changes)
    for name, change in changes.items():
        change(tmp_path / name)
    reader = AdapterReader(shapes)
    for _ in range(2):
        for folder in (native, alpha, values):
            assert_same_function(ours(LoraAdapter(reader.read(folder).modules())), deltas(base, folder))
        with pytest.raises(BadWeights, match="has shape"):
            reader.read(short)
        with pytest.raises(BadWeights, match="target_modules do not name"):
            reader.read(fewer)
    with pytest.raises(BadWeights, match="rank 4 is above the allowed 3"):
        AdapterReader(shapes, max_rank=3).read(native)


def test_what_is_written_is_what_peft_computes(base: Path, shapes: dict[str, Any], tmp_path: Path) -> None:
    """Ranks and scales that differ by module, dimensions below the rank, some modules missing."""
    generator = torch.Generator().manual_seed(5)
    modules = {}
    for position, (name, shape) in enumerate(shapes.items()):
        if position % 3 == 0:
            continue
        rank = (4, 8, 40)[position % 2 + (position == 1)]
        a = torch.randn(rank, shape.into, generator=generator)
        b = torch.randn(shape.out, rank, generator=generator)
        modules[name] = LoraModule(name, a, b, scale=(1.0, 0.3, 2.5)[position % 3])
    adapter = LoraAdapter(modules)

    write_adapter(tmp_path / "adapter", adapter, "some-base")

    assert_same_function(deltas(base, tmp_path / "adapter"), ours(adapter))
    again = read_adapter(tmp_path / "adapter", shapes)
    assert list(again.modules) == list(adapter.modules)
    assert again.rank == 40
    assert all(
        torch.equal(again.modules[n].a, m.a) and torch.equal(again.modules[n].b, m.b) for n, m in modules.items()
    )


def test_equal_adapters_are_written_as_equal_bytes(native: Path, shapes: dict[str, Any], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_adapter(tmp_path / folder, read_adapter(native, shapes), "base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def set_option(**options: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | options))

    return change


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    return change


def in_turn(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def swap(tensors: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    assert PREFIX + name in tensors
    tensors[PREFIX + name] = value


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "DoRA": (set_option(use_dora=True), "use_dora"),
    "modules_to_save": (set_option(modules_to_save=["lm_head"]), "modules_to_save"),
    "bias": (set_option(bias="all"), "bias"),
    "lora_bias": (set_option(lora_bias=True), "lora_bias"),
    "trainable tokens": (set_option(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    "fan_in_fan_out": (set_option(fan_in_fan_out=True), "fan_in_fan_out"),
    "aLoRA": (set_option(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens"),
    "layers used twice": (set_option(layer_replication=[[0, 1], [0, 2]]), "layer_replication"),
    "PiSSA": (set_option(init_lora_weights="pissa_niter_16"), "init_lora_weights 'pissa_niter_16' changes the base"),
    "OLoRA": (set_option(init_lora_weights="OLoRA"), "changes the base"),
    "LoftQ": (set_option(init_lora_weights="loftq"), "changes the base"),
    "target parameters": (set_option(target_parameters=["mlp.experts"]), "target_parameters"),
    "another method": (set_option(peft_type="LOHA"), "LOHA"),
    "lm_head": (set_option(target_modules=["q_proj", "lm_head"]), "lm_head"),
    "lm_head by a pattern": (
        in_turn(
            set_option(target_modules=r".*(_proj|lm_head)"),
            edit_tensors(lambda t: t.update({f"{PREFIX}lm_head.lora_A.weight": torch.ones(4, 64)})),
        ),
        "output head",
    ),
    "embeddings by their key": (
        edit_tensors(lambda t: t.update({f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(4, 260)})),
        "embeddings",
    ),
    "embeddings": (set_option(target_modules=["embed_tokens"]), "embed_tokens"),
    "no module of the base": (set_option(target_modules=["c_attn"]), "match no linear module"),
    "rank zero": (set_option(r=0), "r"),
    "rank above the limit": (set_option(r=64), "rank 64 is above the allowed 16"),
    "alpha NaN": (set_option(lora_alpha=float("nan")), "lora_alpha"),
    "alpha beyond float32": (
        set_option(lora_alpha=1e300),
        r"alpha 1e\+300 of model.layers.0.self_attn.q_proj is beyond",
    ),
    "a pattern without end": (
        set_option(target_modules=r"(x+x+)+y|(\w|\w\w|\w|\.)+!"),
        "takes more than 1 s to match",
    ),
    "a bad pattern": (set_option(rank_pattern={"(": 3}), "regular expression"),
    "fewer modules than the config": (set_option(target_modules=["q_proj", "k_proj"]), "do not name this module"),
    "a missing pair": (
        edit_tensors(lambda t: [t.pop(f"{PREFIX}{Q}.lora_{s}.weight") for s in "AB"]),
        "the config names this module",
    ),
    "a missing partner": (edit_tensors(lambda t: t.pop(f"{PREFIX}{Q}.lora_B.weight")), "its partner is there"),
    "a wrong prefix": (
        edit_tensors(lambda t: [t.update({k.removeprefix("base_model."): t.pop(k)}) for k in list(t)]),
        "must start with base_model.model.",
    ),
    "an unknown key": (edit_tensors(lambda t: t.update({PREFIX + "x.lora_C.weight": torch.ones(1)})), "neither"),
    "a magnitude vector": (
        edit_tensors(lambda t: t.update({f"{PREFIX}{Q}.lora_magnitude_vector": torch.ones(64)})),
        "DoRA",
    ),
    "a module the base lacks": (
        edit_tensors(lambda t: t.update({f"{PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)})),
        r"no linear module model\.layers\.9",
    ),
    "a transposed A": (
        edit_tensors(lambda t: swap(t, f"{Q}.lora_A.weight", torch.ones(64, 4))),
        rf"{Q}: lora_A has shape \[64, 4\], expected \[4, 64\] \(rank 4 on a base weight of \[64, 64\]\)",
    ),
    "another hidden size": (
        edit_tensors(lambda t: swap(t, f"{Q}.lora_B.weight", torch.ones(128, 4))),
        r"lora_B has shape \[128, 4\], expected \[64, 4\]",
    ),
    "NaN": (edit_tensors(lambda t: t[f"{PREFIX}{Q}.lora_B.weight"].fill_(float("nan"))), "NaN"),
    "infinity": (edit_tensors(lambda t: t[f"{PREFIX}{Q}.lora_A.weight"].fill_(float("inf"))), "NaN or infinite"),
    "an A of zeros": (edit_tensors(lambda t: t[f"{PREFIX}{Q}.lora_A.weight"].zero_()), "nothing but zeros"),
    "another dtype": (
        edit_tensors(lambda t: swap(t, f"{Q}.lora_A.weight", torch.ones(4, 64, dtype=torch.float64))),
        "dtype F64",
    ),
    "a config that is no JSON": (lambda f: (f / "adapter_config.json").write_text("{") and None, "adapter_config"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no such file"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "no such file"),
    "only a pickle": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin") and None,
        "no such file",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_adapter_that_cannot_be_served_is_refused_by_name(
    adapter: Path, shapes: dict[str, Any], change: Callable[[Path], None], message: str
) -> None:
    read_adapter(adapter, shapes, max_rank=16)
    change(adapter)
    with pytest.raises(BadWeights, match=message):
        read_adapter(adapter, shapes, max_rank=16)


def flip_a_bit(content: bytearray) -> None:
    content[-10] ^= 1


def make_a_hole(content: bytearray) -> None:
    content[-4000:] = bytes(4000)


def swap_offsets(content: bytearray) -> None:
    """A and B of a square module of rank 4 trade places: shapes and sizes stay right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    a, b = header[f"{PREFIX}{Q}.lora_A.weight"], header[f"{PREFIX}{Q}.lora_B.weight"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    content[8 : 8 + length] = json.dumps(header, separators=(",", ":")).encode().ljust(length)


@pytest.mark.parametrize("corrupt", [flip_a_bit, make_a_hole, swap_offsets], ids=lambda f: f.__name__)
def test_corruption_that_only_a_digest_can_tell_is_told_by_it(
    adapter: Path, shapes: dict[str, Any], tmp_path: Path, corrupt: Callable[[bytearray], None]
) -> None:
    store = Store(tmp_path / "store")
    digest = store.publish(ArtifactKind.VARIANT, adapter, base="sha256:" + "0" * 64).digest
    artifact = store.open(digest)
    read_adapter(artifact.path, shapes, manifest=artifact.manifest)

    weights = artifact.path / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    corrupt(content)
    assert bytes(content) != weights.read_bytes()
    weights.write_bytes(content)

    with pytest.raises(BadWeights, match="sha256"):
        read_adapter(artifact.path, shapes, manifest=artifact.manifest)
    with pytest.raises(CorruptArtifact):
        store.open(digest, verify=True)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "gpt2"}, {"hidden_size": "64"}, {"num_hidden_layers": 0}, {"intermediate_size": 1 << 40}],
    ids=str,
)
def test_a_base_of_unknown_shape_is_refused(base: Path, change: dict[str, object]) -> None:
    config = json.loads((base / "config.json").read_text())
    with pytest.raises(UnsupportedModel):
        linear_shapes(config | change)
