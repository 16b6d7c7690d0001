"""LoRA of a mixed batch on a GPU: owns the static buffers, checks layouts, launches the two kernels.

Each step: the work list is filled and uploaded, by ``plan`` or by the caller's own ``WorkList`` over ``work``; then
for every layer and fused linear ``shrink`` (it may run beside the base's product) and ``expand_`` after both. Besides
device memory a launch depends on its ``Tiles`` alone, so that a graph captured over small tiles
(``WorkLayout.small_tiles``) serves every later work list of them, whatever its adapters. Large tiles follow the ranks
of the batch and are launched anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import torch
import triton

from readapt_kernels.errors import UnsupportedLayout
from readapt_kernels.lora.expand_kernel import expand_kernel
from readapt_kernels.lora.records import linear_words
from readapt_kernels.lora.shapes import RANK_STEP, Limits, LoraShapes
from readapt_kernels.lora.shrink_kernel import shrink_kernel
from readapt_kernels.lora.tiles import TileTable
from readapt_kernels.lora.work import COUNT_WORDS, Segments, Tiles, WorkLayout, WorkList

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ALIGNED_ELEMENTS = 16
ALIGNED_BYTES = 16
INTERPRETED_PROGRAMS = 3


def is_available(device: torch.device) -> bool:
    """Whether the kernels run on this device: a CUDA GPU, or the CPU with Triton's interpreter switched on."""
    return device.type == "cuda" or (device.type == "cpu" and bool(triton.knobs.runtime.interpret))


class LoraKernels:
    """Shrink and expand over adapters that lie in ``pool`` ``[pages, layers, page elements]``.

    ``flights``: linears that may be between their shrink and their expand at the same time; each flight has its own
    bridge, counters and scratch. Within a flight the caller keeps the order shrink, expand, next shrink, across streams
    too. ``programs`` overrides the size of the persistent grid. ``work`` makes the device side of the work list a part
    of a larger buffer, int32 ``[layout.num_words]``, which the caller fills; ``plan`` is for those who leave it to the
    kernels: at most two of them may be ahead of the device, since their pinned buffers take turns.
    """

    def __init__(
        self,
        pool: torch.Tensor,
        shapes: LoraShapes,
        limits: Limits,
        *,
        flights: int = 1,
        tiles: TileTable | None = None,
        programs: int | None = None,
        work: torch.Tensor | None = None,
    ) -> None:
        _check_pool(pool, shapes)
        self._pool, self._shapes, self._tiles = pool, shapes, tiles or TileTable()
        self._programs = programs or INTERPRETED_PROGRAMS
        self._sms = _multiprocessors(pool.device) if programs is None else None
        self.layout = WorkLayout(shapes, limits, self._tiles)
        if work is None:
            work = torch.zeros(self.layout.num_words, dtype=torch.int32, device=pool.device)
        self.work = work
        self._hosts: Iterator[WorkList] | None = None
        small, width = self.layout.max_small_items, self.layout.bridge_width
        splits = max(self._tiles.splits(shape, shapes.chunk) for shape in shapes.linears)
        self.bridge = torch.empty(flights, limits.max_tokens, width, dtype=pool.dtype, device=pool.device)
        self.planes = torch.empty(flights, small * splits, 16, RANK_STEP, dtype=torch.float32, device=pool.device)
        self.counters = torch.zeros(flights, small, dtype=torch.int32, device=pool.device)
        self._planned: tuple[Segments, int] | None = None
        self._tiles_planned: Tiles | None = None

    def plan(self, segments: Segments, num_tokens: int) -> None:
        """Uploads the work of a batch, on the current stream; the same batch again costs nothing.

        Segments are in the order of their rows; base rows lie anywhere between them. Raises WorkTooLarge.
        """
        wanted = (segments, num_tokens)
        if wanted != self._planned:
            work = next(self._own_hosts())
            step = work.fill(*wanted)
            self.work[: step.used].copy_(work.host[: step.used], non_blocking=True)
            self._planned, self._tiles_planned = wanted, step.tiles

    def _own_hosts(self) -> Iterator[WorkList]:
        if self._hosts is None:
            words, pinned = self.layout.num_words, self._pool.is_cuda
            hosts = [torch.zeros(words, dtype=torch.int32, pin_memory=pinned) for _ in range(2)]
            self._hosts = cycle([WorkList(self.layout, host) for host in hosts])
        return self._hosts

    def shrink(self, layer: int, linear: int, x: torch.Tensor, flight: int = 0, tiles: Tiles | None = None) -> None:
        """Bridge of the flight ``= x · Aᵀ`` for the rows of the work list: x ``[tokens, in]``.

        ``tiles`` are those that the work list was cut into; by default the planned ones.
        """
        cut, shape, layout = self._cut(layer, tiles), self._shapes.linears[linear], self.layout
        self._check_rows("x", x, shape.in_features, cut)
        tile = cut.shrink[linear]
        shrink_kernel[self._grid(tile.programs_per_sm)](
            x,
            self._pool,
            self.bridge[flight],
            self.planes[flight],
            self.counters[flight],
            self.work[linear * COUNT_WORDS :],
            self.work[layout.shrink_items + linear * layout.shrink_stride :],
            self.work[layout.tables :],
            self.work[layout.layers :],
            self.work[layout.directories :],
            layer,
            linear * linear_words(self._shapes),
            x.stride(0),
            self._pool.stride(0),
            self._pool.stride(1),
            IN=shape.in_features,
            SLICES=len(shape.out_sizes),
            BLOCK_T=tile.tokens,
            BLOCK_C=tile.columns,
            BLOCK_K=tile.wide,
            SPLITS=tile.splits,
            num_warps=self._tiles.warps,
            num_stages=tile.stages,
            **self._constants(),
        )

    def expand_(self, layer: int, linear: int, y: torch.Tensor, flight: int = 0, tiles: Tiles | None = None) -> None:
        """``y += scale · bridge · Bᵀ`` for the same rows and every slice, in place: y ``[tokens, out]``."""
        cut, shape, layout = self._cut(layer, tiles), self._shapes.linears[linear], self.layout
        self._check_rows("y", y, shape.out_features, cut)
        tile = cut.expand
        expand_kernel[self._grid(tile.programs_per_sm)](
            y,
            self._pool,
            self.bridge[flight],
            self.work[len(self._shapes.linears) * COUNT_WORDS :],
            self.work[layout.expand_items :],
            self.work[layout.tables :],
            self.work[layout.layers :],
            self.work[layout.directories :],
            layer,
            linear * linear_words(self._shapes),
            y.stride(0),
            self._pool.stride(0),
            self._pool.stride(1),
            STARTS=shape.out_starts,
            SIZES=shape.out_sizes,
            TILES=shape.out_features // tile.wide,
            BLOCK_T=tile.tokens,
            BLOCK_N=tile.wide,
            BLOCK_C=RANK_STEP,
            num_warps=self._tiles.warps,
            num_stages=tile.stages,
            **self._constants(),
        )

    def _grid(self, programs_per_sm: int) -> tuple[int]:
        return (self._programs if self._sms is None else self._sms * programs_per_sm,)

    def _constants(self) -> dict[str, int | str]:
        return {
            "CHUNK": self._shapes.chunk,
            "CHUNKS_PER_PAGE": self._shapes.chunks_per_page,
            "MAX_PAGES": self.layout.limits.max_pages,
            "NUM_LAYERS": self._shapes.num_layers,
            "BRIDGE_WIDTH": self.layout.bridge_width,
            "PRECISION": "ieee",  # fp32 products stay fp32; without meaning for 16-bit ones
        }

    def _cut(self, layer: int, tiles: Tiles | None) -> Tiles:
        cut = tiles or self._tiles_planned
        if cut is None:
            raise UnsupportedLayout("nothing is planned")
        if not 0 <= layer < self._shapes.num_layers:
            raise UnsupportedLayout(f"layer {layer} of {self._shapes.num_layers}")
        return cut

    def _check_rows(self, name: str, rows: torch.Tensor, width: int, cut: Tiles) -> None:
        if rows.dtype is not self._pool.dtype or rows.device != self._pool.device:
            raise UnsupportedLayout(
                f"{name} is {rows.dtype} on {rows.device}, the pool {self._pool.dtype} on {self._pool.device}"
            )
        if rows.ndim != 2 or rows.shape[1] != width or rows.shape[0] < cut.num_tokens:
            raise UnsupportedLayout(f"{name} is {list(rows.shape)}, planned was [{cut.num_tokens}, {width}]")
        if rows.stride(1) != 1 or rows.stride(0) % ALIGNED_ELEMENTS or rows.data_ptr() % ALIGNED_BYTES:
            raise UnsupportedLayout(f"{name} has strides {rows.stride()}: rows must be dense and start at 16 elements")


def _check_pool(pool: torch.Tensor, shapes: LoraShapes) -> None:
    if not is_available(pool.device):
        raise UnsupportedLayout(f"no kernels on {pool.device}: a CUDA GPU is needed (or TRITON_INTERPRET=1, to test)")
    if pool.dtype not in DTYPES:
        raise UnsupportedLayout(f"a pool of {pool.dtype}; the kernels compute {', '.join(map(str, DTYPES))}")
    if pool.ndim != 3 or tuple(pool.shape[1:]) != (shapes.num_layers, shapes.page_elements):
        raise UnsupportedLayout(
            f"a pool of shape {list(pool.shape)}, wanted [pages, {shapes.num_layers}, {shapes.page_elements}]"
        )
    if pool.stride(2) != 1 or any(stride % ALIGNED_ELEMENTS for stride in pool.stride()[:2]):
        raise UnsupportedLayout(f"a pool with strides {pool.stride()}: rows must be dense and start at 16 elements")
    if pool.data_ptr() % ALIGNED_BYTES:
        raise UnsupportedLayout(f"a pool at an address that is no multiple of {ALIGNED_BYTES} bytes")


def _multiprocessors(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else None
