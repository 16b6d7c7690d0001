"""Readapt's engine, in process."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path

import torch
from readapt_engine import build
from workloads import Job, report

from readapt_runtime.engine.core import Event, Failure, Request, SamplingParams, Token, Variant
from readapt_runtime.engine.engine import Engine


def main() -> None:
    job = Job.from_argument()
    torch.set_num_threads(job.threads)
    engine, variants = build(Path(job.base), [Path(folder) for folder in job.adapters], torch.bfloat16)
    run(engine, job, variants, output_tokens=4)
    report(*run(engine, job, variants, job.workload.output_tokens))


def run(engine: Engine, job: Job, variants: list[Variant], output_tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds from the first request to the last answer, and the answers. Raises what a request failed with."""
    answers: list[list[Event]] = []
    params = SamplingParams(output_tokens, job.workload.temperature, job.workload.top_p)
    for index, prompt in enumerate(job.workload.prompts()):
        variant = variants[index % len(variants)] if variants else None
        answers.append([])
        engine.add(Request(tuple(prompt), params, answers[-1].append, variant))
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - started
    for event in chain.from_iterable(answers):
        if isinstance(event, Failure):
            raise event.error
    return seconds, [[event.token_id for event in events if isinstance(event, Token)] for events in answers]


if __name__ == "__main__":
    main()
