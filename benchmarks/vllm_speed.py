"""Generation: the engine against vLLM on CPU, on dense hybrids: the same exported folder, the same prompts, greedy, passes in turns.

    python benchmarks/vllm_speed.py                            # needs .venv-vllm (make vllm)
    python benchmarks/vllm_speed.py --hidden 512 --dtype float32 --requests 16

Prompts of 32 tokens, 128 new ones (nothing stops early), all requests handed over at once. Tokens/s counts new tokens over the whole call, prompts
included, neither start nor compilation; the best of several passes counts. vLLM runs compiled, in an environment and a process of its own, which sleeps
while we work; both have as many threads as OMP_NUM_THREADS says, on the same cores. Its prefix cache is off (on CPU it fails on Mamba layers), ours is
off by default. The share of equal tokens is shown: all in float32, while in bfloat16 untrained weights make near ties that rounding decides, and after the
first of them texts go apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATTERN = "M-M-M*-M-M-"
VOCABULARY = 8192
ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / ".venv-vllm/bin/python"


def child(folder: str, dtype: str, length: int) -> None:
    """vLLM, asked by lines of JSON on stdin: prompts and how many tokens each; answers seconds and tokens."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
                   "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM prints is no answer
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(model=folder, skip_tokenizer_init=True, dtype=dtype, max_model_len=length, max_num_seqs=64, kv_cache_memory_bytes=1 << 29,
              enable_prefix_caching=False)
    print(torch.get_num_threads(), file=answers)
    for line in sys.stdin:
        prompts, new = json.loads(line)
        wanted = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], wanted, use_tqdm=False)
        seconds = time.perf_counter() - begun
        print(json.dumps([seconds, [list(output.outputs[0].token_ids) for output in outputs]]), file=answers)


def compare(hidden: int, dtype: str, requests: list[int], passes: int, prompt: int, new: int, verbose: bool) -> None:
    import torch
    from tokenizers import Tokenizer, models

    from model import HybridConfig, HybridLM
    from model.engine import Engine, SamplingParams

    config = HybridConfig.small(VOCABULARY, pattern=PATTERN, mtp_depth=0, hidden_size=hidden, num_attention_heads=hidden // 32,
                                num_key_value_heads=hidden // 128, mamba_num_heads=hidden // 32, intermediate_size=4 * hidden)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))  # prompts are ids: never looked at
    with tempfile.TemporaryDirectory() as folder:
        HybridLM(config, seed=0).save_pretrained(folder, dtype=getattr(torch, dtype))
        lm = HybridLM.from_pretrained(folder, compute_dtype=getattr(torch, dtype))
        peer = subprocess.Popen([PEER, __file__, "--child", folder, dtype, str(prompt + new)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                stderr=None if verbose else subprocess.DEVNULL)
        try:
            threads = json.loads(peer.stdout.readline() or "null")
            if threads != torch.get_num_threads():
                sys.exit(f"vLLM did not start (see --verbose), or with {threads} threads where we have {torch.get_num_threads()}")
            for count in requests:
                engine = Engine(lm, words, max_slots=count, max_length=prompt + new)
                ids_BT = torch.randint(0, VOCABULARY, (count, prompt), generator=torch.Generator().manual_seed(count)).tolist()
                wanted = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
                ours, theirs = [], []
                for turn in range(passes + 1):
                    begun = time.perf_counter()
                    written = [output.outputs[0].token_ids for output in engine.generate(ids_BT, wanted)]
                    seconds = time.perf_counter() - begun
                    print(json.dumps([ids_BT, new]), file=peer.stdin, flush=True)
                    peer_seconds, peer_written = json.loads(peer.stdout.readline())
                    if turn:  # the first pass warms up
                        ours.append(seconds)
                        theirs.append(peer_seconds)
                same = sum(a == b for x, y in zip(written, peer_written) for a, b in zip(x, y)) / (count * new)
                by_pass = statistics.median(b / a for a, b in zip(ours, theirs))
                print(f"| {hidden} | {dtype} | {count} | {count * new / min(theirs):,.0f} | {count * new / min(ours):,.0f} | {min(theirs) / min(ours):.2f} | "
                      f"{by_pass:.2f} | {same:.1%} |", flush=True)
        finally:
            peer.stdin.close()
            peer.wait(60)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="*", default=[256, 768], help="widths of the models, multiples of 128")
    parser.add_argument("--dtype", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--requests", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--verbose", action="store_true", help="show what vLLM prints")
    arguments = parser.parse_args()
    if not (ROOT / ".venv-vllm/.ready").exists():
        parser.error("there is no .venv-vllm: make vllm")
    print(f"pattern {PATTERN}, threads {os.environ.get('OMP_NUM_THREADS', 'all')}\n")
    print("| hidden | dtype | requests | vLLM, tokens/s | ours | ratio of the best | median ratio of a pass | tokens equal |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for hidden in arguments.hidden:
        for dtype in arguments.dtype:
            compare(hidden, dtype, arguments.requests, arguments.passes, arguments.prompt, arguments.new, arguments.verbose)


if __name__ == "__main__":
    main()
