"""What an adapter has learned, as files beside its ordinary PEFT folder.

    adapter_config.json, adapter_model.safetensors   the fold: what is served
    block-000.safetensors, block-001.safetensors …   per task the directions, each of Frobenius norm 1, in float32
    magnitudes.json                                  per block its task and, by module, its magnitudes

A later task adds a block and rewrites the magnitudes; so does a base that moves. Blocks never change.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from readapt_api.artifacts import MAGNITUDES, FactorBlock, Manifest
from readapt_api.contract import Contract
from readapt_api.digest import canonical_json
from readapt_runtime.continual.blocks import Block, Folded, Learned, fold
from readapt_runtime.factor_file import read_factors, write_factors
from readapt_runtime.lora_format import write_adapter
from readapt_runtime.safe_tensors import BadWeights


class BlockMagnitudes(Contract):
    """One block of magnitudes.json."""

    task: str = Field(max_length=256)
    weights: str = Field(pattern=r"^block-[0-9]{3}\.safetensors$")
    magnitudes: dict[str, float]


class Magnitudes(Contract):
    """magnitudes.json."""

    version: int = 1
    blocks: tuple[BlockMagnitudes, ...]


def write_learned(folder: Path, learned: Learned, base_name: str, max_rank: int) -> Folded:
    """Writes all files; the fold is what ``adapter_model.safetensors`` holds. Equal input gives equal bytes."""
    folded = fold(learned, max_rank)
    write_adapter(folder, folded.adapter, base_name)
    for number, block in enumerate(learned.blocks):
        write_factors(folder / _name(number), block.directions)
    (folder / MAGNITUDES).write_bytes(canonical_json(magnitudes_of(learned).to_wire()))
    return folded


def magnitudes_of(learned: Learned) -> Magnitudes:
    return Magnitudes(
        blocks=tuple(
            BlockMagnitudes(task=block.task, weights=_name(number), magnitudes=dict(block.magnitudes))
            for number, block in enumerate(learned.blocks)
        )
    )


def read_learned(folder: Path, document: Magnitudes | None = None) -> Learned:
    """The blocks with the magnitudes of ``document``, else of magnitudes.json.

    Raises BadWeights when blocks and magnitudes do not belong together.
    """
    document = document or _read_magnitudes(folder / MAGNITUDES)
    blocks = []
    for entry in document.blocks:
        directions = read_factors(folder / entry.weights)
        if set(directions) != set(entry.magnitudes):
            raise BadWeights(f"{entry.weights}: its modules are not those that {MAGNITUDES} lists")
        blocks.append(Block(entry.task, directions, entry.magnitudes))
    return Learned(tuple(blocks))


def _read_magnitudes(path: Path) -> Magnitudes:
    try:
        return Magnitudes.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadWeights(f"{MAGNITUDES}: {' '.join(str(error).split())[:200]}") from error


def is_learned(manifest: Manifest) -> bool:
    """Whether a variant's folder holds blocks."""
    return any(block.scales == MAGNITUDES for block in manifest.blocks)


def factor_blocks(learned: Learned) -> tuple[FactorBlock, ...]:
    """For the manifest of the variant."""
    return tuple(
        FactorBlock(weights=_name(number), scales=MAGNITUDES, task=block.task)
        for number, block in enumerate(learned.blocks)
    )


def _name(number: int) -> str:
    return f"block-{number:03}.safetensors"
