"""Run by an environment that has vLLM: greedy continuations of prompts (token ids, JSON on stdin) by each model folder named, as one JSON line."""

import gc
import json
import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}

from vllm import LLM, SamplingParams

asked = json.load(sys.stdin)
greedy = SamplingParams(temperature=0, max_tokens=asked["max_tokens"], ignore_eos=True, detokenize=False)
answers = {}
for folder in sys.argv[1:]:
    llm = LLM(model=folder, skip_tokenizer_init=True, dtype=asked["dtype"], max_model_len=256, max_num_seqs=8, enforce_eager=asked["eager"],
              kv_cache_memory_bytes=1 << 26, enable_prefix_caching=False)  # vLLM 0.32 on CPU: Mamba layers fail with it, their scan keeps no states between chunks
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], greedy, use_tqdm=False)
    answers[folder] = [list(output.outputs[0].token_ids) for output in outputs]
    del llm
    gc.collect()
print("ANSWERS " + json.dumps(answers))
