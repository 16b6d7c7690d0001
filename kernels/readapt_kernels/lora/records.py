"""What the kernels need to know of one adapter, as int32 words; made once, when the adapter becomes resident.

In: where its factors lie, per layer and fused linear, in elements of the layer's flat stretch, and its pages. Out:
``AdapterRecord`` (one per image) and ``PlacedAdapter`` (one per residency), which segments of a batch name.
Layers with equal factors share one *directory*: ``layers`` says which of the ``directories`` a layer uses.

A directory has ``linear_words`` per fused linear::

    bridge columns | first chunk of A | per slice: first A row, rank, first bridge column, first chunk of Bᵀ, scale

The scale is a float32 in an int32 word: it is applied to the accumulator of expand and never rounds B.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from readapt_kernels.errors import UnsupportedLayout, WorkTooLarge
from readapt_kernels.lora.shapes import RANK_STEP, Limits, LinearShape, LoraShapes, round_up

Words = NDArray[np.int32]
COLUMNS, A_CHUNK, HEAD_WORDS = range(3)
"""Words of a fused linear, and where its slices begin."""
ROW, RANK, COLUMN, B_CHUNK, SCALE, SLICE_WORDS = range(6)
"""Words of a slice, and their number."""


@dataclass(frozen=True, slots=True)
class SliceRows:
    """One module's share of a fused linear: A rows from ``rank_start``, Bᵀ ``[rank, out]`` from ``b_offset``."""

    rank_start: int
    rank: int
    b_offset: int
    scale: float


@dataclass(frozen=True, slots=True)
class LinearRows:
    """One fused linear: A rows of all its modules from ``a_offset``; None where the adapter lacks the module."""

    a_offset: int
    slices: tuple[SliceRows | None, ...]


Layer = Sequence[LinearRows | None]
"""The fused linears of one layer, in the order of ``LoraShapes.linears``; None where nothing is adapted."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterRecord:
    """Words of one adapter wherever it lies."""

    layers: Words
    """``[num_layers]``: the layer's directory, counted in words from the first."""
    directories: Words
    """``[distinct layers * directory_words]``."""
    columns: Words
    """``[linears]``: bridge columns, the most over the layers."""
    max_rank: int
    num_chunks: int
    """Chunks of a layer that the factors reach into."""


@dataclass(frozen=True, slots=True, eq=False)
class PlacedAdapter:
    """An adapter whose pages are in the pool; compared by identity. Its words are bytes: a step joins those of many."""

    slot: bytes
    """A ``slot_type``."""
    directories: bytes
    """As in its record."""


def slot_type(shapes: LoraShapes, limits: Limits) -> np.dtype[np.void]:
    """What a slot of a batch has of its adapter; as long for every adapter."""
    return np.dtype(
        [
            ("table", np.int32, (limits.max_pages,)),  # its page indices, in the order of the flat stretch; then zeros
            ("layers", np.int32, (shapes.num_layers,)),
            ("columns", np.int32, (len(shapes.linears),)),
            ("directory_words", np.int32),  # of all its directories
        ]
    )


def place(record: AdapterRecord, pages: Sequence[int], shapes: LoraShapes, limits: Limits) -> PlacedAdapter:
    """The adapter on these pages; raises UnsupportedLayout when they are too few, WorkTooLarge beyond the limits."""
    if record.num_chunks > len(pages) * shapes.chunks_per_page:
        raise UnsupportedLayout(f"{len(pages)} pages are too few for {record.num_chunks} chunks of factors")
    if len(pages) > limits.max_pages:
        raise WorkTooLarge(f"an adapter of {len(pages)} pages, the buffers hold {limits.max_pages}")
    if record.max_rank > limits.max_rank:
        raise WorkTooLarge(f"an adapter of rank {record.max_rank}, the buffers hold {limits.max_rank}")
    slot = np.zeros((), dtype=slot_type(shapes, limits))
    slot["table"][: len(pages)] = pages
    slot["layers"], slot["columns"], slot["directory_words"] = record.layers, record.columns, len(record.directories)
    return PlacedAdapter(slot.tobytes(), record.directories.tobytes())


def linear_words(shapes: LoraShapes) -> int:
    return HEAD_WORDS + SLICE_WORDS * shapes.max_slices


def directory_words(shapes: LoraShapes) -> int:
    return linear_words(shapes) * len(shapes.linears)


def describe(layers: Sequence[Layer], shapes: LoraShapes) -> AdapterRecord:
    """The record of an adapter; raises UnsupportedLayout when its factors do not fit the shapes."""
    if len(layers) != shapes.num_layers:
        raise UnsupportedLayout(f"{len(layers)} layers, the model has {shapes.num_layers}")
    distinct = {id(layer): layer for layer in layers}
    known: dict[tuple[int, ...], int] = {}
    numbers = {key: known.setdefault(_directory(layer, shapes), len(known)) for key, layer in distinct.items()}
    directories = np.array(list(known), dtype=np.int32)
    found = [linear for layer in distinct.values() for linear in layer if linear is not None]
    slices = [part for linear in found for part in linear.slices if part is not None]
    return AdapterRecord(
        layers=np.array([numbers[id(layer)] * directory_words(shapes) for layer in layers], dtype=np.int32),
        directories=directories.ravel(),
        columns=directories[:, COLUMNS :: linear_words(shapes)].max(axis=0),
        max_rank=max((part.rank for part in slices), default=0),
        num_chunks=max(_end(layer, shapes) for layer in distinct.values()),
    )


def _directory(layer: Layer, shapes: LoraShapes) -> tuple[int, ...]:
    if len(layer) != len(shapes.linears):
        raise UnsupportedLayout(f"{len(layer)} fused linears, the model has {len(shapes.linears)}")
    words: list[int] = []
    for rows, shape in zip(layer, shapes.linears, strict=True):
        words += [0] * linear_words(shapes) if rows is None else _linear(rows, shape, shapes)
    return tuple(words)


def _linear(rows: LinearRows, shape: LinearShape, shapes: LoraShapes) -> list[int]:
    if len(rows.slices) != len(shape.out_sizes):
        raise UnsupportedLayout(f"{len(rows.slices)} slices for a fused linear of {len(shape.out_sizes)}")
    words: list[int] = []
    row, column = 0, 0
    for part in rows.slices:
        if part is None:
            words += [row, 0, column, 0, 0]
            continue
        words += [part.rank_start, part.rank, column, _chunks(part.b_offset, shapes), _float_bits(part.scale)]
        row, column = part.rank_start + part.rank, column + round_up(part.rank, RANK_STEP)
    words += [0] * (SLICE_WORDS * (shapes.max_slices - len(rows.slices)))
    return [column, _chunks(rows.a_offset, shapes), *words]


def _chunks(offset: int, shapes: LoraShapes) -> int:
    if offset < 0 or offset % shapes.chunk:
        raise UnsupportedLayout(f"a factor at element {offset} does not start at a multiple of {shapes.chunk}")
    return offset // shapes.chunk


def _end(layer: Layer, shapes: LoraShapes) -> int:
    ends = [0]
    for rows, shape in zip(layer, shapes.linears, strict=True):
        for part, size in zip(rows.slices if rows else (), shape.out_sizes, strict=False):
            if rows is not None and part is not None:
                ends += [
                    rows.a_offset + (part.rank_start + part.rank) * shape.in_features,
                    part.b_offset + part.rank * size,
                ]
    return -(-max(ends) // shapes.chunk)


def _float_bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])
