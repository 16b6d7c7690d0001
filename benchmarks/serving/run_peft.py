"""transformers + PEFT: one static batch with ``adapter_names``."""

from __future__ import annotations

import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from workloads import Job, report


def main() -> None:
    job = Job.from_argument()
    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.bfloat16)
    for index, folder in enumerate(job.adapters):
        name = f"a{index}"
        if index == 0:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        else:
            model.load_adapter(folder, adapter_name=name)
    model.eval()
    prompts = torch.tensor(job.workload.prompts())
    names = [f"a{i % len(job.adapters)}" for i in range(len(prompts))] if job.adapters else None
    extra = {"adapter_names": names} if names else {}
    if job.workload.temperature:
        extra |= {"do_sample": True, "temperature": job.workload.temperature, "top_p": job.workload.top_p, "top_k": 0}
    else:
        extra |= {"do_sample": False}

    def run(output_tokens: int) -> tuple[float, list[list[int]]]:
        started = time.perf_counter()
        with torch.inference_mode():
            answers = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=output_tokens,
                min_new_tokens=output_tokens,
                **extra,
            )
        return time.perf_counter() - started, answers[:, prompts.shape[1] :].tolist()

    run(4)
    report(*run(job.workload.output_tokens))


if __name__ == "__main__":
    main()
