"""llama.cpp (``llama-cpp-python``) on a GGUF file: all sequences in one context, one decode call a step, greedy."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from workloads import Job, report


class Context:
    """The model with room for every sequence."""

    def __init__(self, job: Job) -> None:
        sequences, length = job.workload.requests, job.workload.prompt_tokens + job.workload.output_tokens
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = llama_cpp.llama_load_model_from_file(job.base.encode(), model_params)
        if not self._model:
            raise ValueError(f"{job.base}: llama.cpp cannot load it")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * length
        params.n_batch = sequences * job.workload.prompt_tokens
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = job.threads
        params.kv_unified = False
        self._context = llama_cpp.llama_new_context_with_model(self._model, params)
        self._vocabulary = llama_cpp.llama_n_vocab(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def step(self, rows: Sequence[Sequence[int]], start: int) -> list[int]:
        """The greedy next token of every sequence, whose new tokens begin at position ``start``."""
        batch: Any = self._batch
        at, last = 0, []
        for sequence, tokens in enumerate(rows):
            for offset, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, start + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = offset == len(tokens) - 1
                at += 1
            last.append(at - 1)
        batch.n_tokens = at
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode: {code}")
        return [self._greedy(index) for index in last]

    def _greedy(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        row = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._vocabulary,))
        return int(row.argmax())


def main() -> None:
    job = Job.from_argument()
    context, prompts = Context(job), job.workload.prompts()

    def run(output_tokens: int) -> tuple[float, list[list[int]]]:
        context.clear()
        started = time.perf_counter()
        answers = [[token] for token in context.step(prompts, 0)]
        for at in range(1, output_tokens):
            for answer, token in zip(
                answers, context.step([a[-1:] for a in answers], len(prompts[0]) + at - 1), strict=True
            ):
                answer.append(token)
        return time.perf_counter() - started, answers

    run(4)
    report(*run(job.workload.output_tokens))


if __name__ == "__main__":
    main()
