"""Readapt's engine, in process."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from workloads import Job, report

from readapt_runtime.engine.core import Event, Failure, Request, SamplingParams, Variant
from readapt_runtime.engine.engine import Engine, EngineLimits
from readapt_runtime.engine.pool import PageLayout, PagePool
from readapt_runtime.lora_format import read_adapter
from readapt_runtime.model.adapter_image import pack_adapter
from readapt_runtime.model.backends import Bounds, choose_backends, choose_ops
from readapt_runtime.model.config import read_config
from readapt_runtime.model.decoder import Decoder
from readapt_runtime.model.weights import load_weights

POOL_BYTES = 1536 << 20


def main() -> None:
    job = Job.from_argument()
    torch.set_num_threads(job.threads)
    config, dtype, cpu = read_config(Path(job.base)), torch.bfloat16, torch.device("cpu")
    ops = choose_ops(config, dtype, cpu)
    weights = load_weights(Path(job.base), config, dtype, cpu, ops)
    pool = PagePool(PageLayout.of(config), POOL_BYTES, dtype, cpu)
    engine = Engine(Decoder(weights, choose_backends(config, ops, pool, Bounds())), pool, EngineLimits())
    variants = []
    for index, folder in enumerate(job.adapters):
        adapter = read_adapter(Path(folder), config.module_shapes)
        image = pack_adapter(adapter.modules, config, pool.layout.elements, dtype)
        variants.append(Variant(f"a{index}", f"sha256:{'0' * 64}", image))
    run(engine, job, variants, output_tokens=4)
    report(*run(engine, job, variants, job.workload.output_tokens))


def run(engine: Engine, job: Job, variants: list[Variant], output_tokens: int) -> tuple[float, int]:
    """Seconds and tokens from the first request to the last answer."""
    events: list[Event] = []
    for index, prompt in enumerate(job.workload.prompts()):
        variant = variants[index % len(variants)] if variants else None
        engine.add(Request(tuple(prompt), SamplingParams(output_tokens), events.append, variant))
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - started
    for event in events:
        if isinstance(event, Failure):
            raise event.error
    return seconds, len(events)


if __name__ == "__main__":
    main()
