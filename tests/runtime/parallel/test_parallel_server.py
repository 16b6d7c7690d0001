"""``readapt serve --tensor-parallel 2``, asked by the openai client and judged by transformers and PEFT."""

from __future__ import annotations

from typing import Any

import httpx
import openai
from transformers import AutoTokenizer

from readapt_cluster.waiting import until
from readapt_testing.serving import serve_process
from readapt_testing.tiny_engine import Tiny


def test_base_and_adapters_answer_as_the_oracle_does(tiny: Tiny) -> None:
    """One adapter is fully sharded, the others are not."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.base)
    prompt = "Wie heißt die Hauptstadt?"
    arguments = ["--base", str(tiny.base), "--served-name", "tiny", "--pool-memory", "16Mi"]
    arguments += [word for name, folder in tiny.adapters.items() for word in ("--adapter", f"{name}={folder}")]
    with serve_process([*arguments, "--tensor-parallel", "2", "--full-shard-rank", "64"]) as (_, addresses):
        ready = f"{addresses['serving']}/readyz"
        assert until(lambda: httpx.get(ready, timeout=30).status_code == 200, 60, every_s=0.05)
        with openai.OpenAI(base_url=f"{addresses['serving']}/v1", api_key="unused", max_retries=0) as client:
            for name in (None, *tiny.adapters):
                answer = client.completions.create(model=name or "tiny", prompt=prompt, temperature=0, max_tokens=8)
                tokens = tiny.oracle.greedy(tiny.folder(name), tokenizer(prompt)["input_ids"], 8)
                assert answer.choices[0].text == tokenizer.decode(tokens, skip_special_tokens=True)
