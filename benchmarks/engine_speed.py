"""Generation: the engine against transformers' `generate`, same weights, same prompts, greedy, alternating in one run.

    python benchmarks/engine_speed.py                          # batch 1 and 16, float32 and bf16
    python benchmarks/engine_speed.py --batch 16 --dtype bfloat16 --profile
    python benchmarks/engine_speed.py --floor                  # what a step must read and multiply, at this machine's rates
    python benchmarks/engine_speed.py --guess MODEL --batch 1 8    # guessing ahead with a trained model's MTP block against plain decoding

The 18.7M-parameter configuration of benchmarks/model_speed.py; prompts of 32 tokens, 128 new ones (nothing stops early). Tokens/s counts new tokens
over the whole call, prompts included; the best of several passes counts.
"""

import argparse
import cProfile
import pstats
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from model_speed import SHAPE, best, theirs

from kernels.skinny import PANEL, product
from model import HybridConfig, HybridLM
from model.engine import Engine, SamplingParams


def blank_tokenizer():
    """A tokenizer whose tokens are never looked at: prompts here are ids."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({str(i): i for i in range(SHAPE["vocab_size"])}, unk_token="0"))


def compare(batch: int, dtype: torch.dtype, passes: int, prompt: int, new: int, profile: bool) -> None:
    lm = HybridLM(HybridConfig(**SHAPE), seed=0, compute_dtype=dtype).eval()
    engine = Engine(lm, blank_tokenizer(), max_slots=batch, max_length=prompt + new)
    ids_BT = torch.randint(0, SHAPE["vocab_size"], (batch, prompt), generator=torch.Generator().manual_seed(0))
    wanted = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    written = {}

    def ours() -> None:
        written["ours"] = [o.outputs[0].token_ids for o in engine.generate(ids_BT.tolist(), wanted)]

    if profile:
        ours()
        profiler = cProfile.Profile()
        profiler.runcall(ours)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(32)
        return
    reference = theirs(lm, dtype).eval()

    @torch.inference_mode()
    def others() -> None:
        out = reference.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
        written["theirs"] = out[:, prompt:].tolist()

    mine, other = best(passes, ours, others)
    equal = sum(a == b for x, y in zip(written["ours"], written["theirs"]) for a, b in zip(x, y)) / (batch * new)
    tokens = batch * new
    print(f"| {batch} | {str(dtype)[6:]} | {tokens / other:,.0f} | {tokens / mine:,.0f} | {other / mine:.1f} | {equal:.1%} |", flush=True)


def floor() -> None:
    """Least times of a step on one thread: weights and states read at the rate of one product's weights passing, multiplied at the rate of many rows."""
    config = HybridConfig(**SHAPE)
    lm = HybridLM(config, seed=None)
    big = [p for p in lm.parameters() if p.dim() > 1 and p is not lm.embeddings.weight]
    routed = sum(p.numel() for p in big if p.dim() == 3 and len(p) == config.n_routed_experts)
    shared = sum(p.numel() for p in big) - routed
    state = 4 * config.pattern.count("M") * config.d_inner * config.ssm_state_size
    print("| dtype | batch | weights, MB | states read and written, MB | ms to read from cache | from memory | GFLOP | ms to multiply |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        near, far, peak = passing(dtype, 8 << 20, 1)[0], passing(dtype, 256 << 20, 1)[0], passing(dtype, 1 << 20, 16)[1]
        for batch in (1, 16):
            share = config.num_experts_per_tok / config.n_routed_experts
            read = size * (shared + routed * (1 - (1 - share) ** batch))
            moved, flop = 2 * batch * state, 2 * batch * (shared + routed * share)
            least = " | ".join(f"{1e3 * (read + moved) / rate:.2f}" for rate in (near, far))
            print(f"| {str(dtype)[6:]} | {batch} | {read / 1e6:.0f} | {moved / 1e6:.0f} | {least} | "
                  f"{flop / 1e9:.2f} | {1e3 * flop / peak:.2f} |")
        print(f"\n{str(dtype)[6:]}: {near / 1e9:.0f} GB/s from cache, {far / 1e9:.0f} from memory, {peak / 1e9:.0f} GFLOP/s\n")


def passing(dtype: torch.dtype, size: int, rows: int) -> tuple[float, float]:
    """(bytes/s, FLOP/s) of `rows` rows times a packed matrix of `size` bytes, 256 inputs."""
    pairs = dtype == torch.bfloat16
    words, width = np.ones(size // 4, np.uint32 if pairs else np.float32), 128 if pairs else 256
    outputs = len(words) // width
    inputs, out = np.ones(rows * width, words.dtype), np.empty(rows * outputs, np.float32)
    seconds = best(10, lambda: product(words, 0, inputs, rows, width, 0, outputs // PANEL, out, outputs))[0]
    return size / seconds, 2 * rows * outputs * 256 / seconds


def guess(folder: Path, batch: int, temperature: float, stream: bool, passes: int, new: int) -> None:
    """Plain decoding, always 2 or 3 guesses, and 2 while they pay: same prompts, same tokens, in turns. `stream`: a call a step, as a server works."""
    from tokenizers import Tokenizer

    lm, tokenizer = HybridLM.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = (["The history of the city", "In the year", "What is the sum of 12 and 7?", "The following is a list of"] * batch)[:batch]
    wanted = SamplingParams(temperature=temperature, max_tokens=new, ignore_eos=True, seed=3)
    engines = [Engine(lm, tokenizer, max_slots=batch, max_length=2 * new, guesses=guesses, always_guess=always)
               for guesses, always in ((0, False), (2, True), (3, True), (2, False))]
    written = {}

    def work(engine: Engine) -> None:
        if stream:
            outputs = [engine.submit(prompt, wanted).output for prompt in prompts]
            while engine.busy:
                engine.step()
        else:
            outputs = engine.generate(prompts, wanted)
        written[id(engine)] = [o.outputs[0].token_ids for o in outputs]

    times = best(passes, *(lambda engine=engine: work(engine) for engine in engines))
    for name, engine, seconds in zip(("plain", "2 guesses, always", "3 guesses, always", "2 guesses while they pay"), engines, times):
        accepted = engine.scheduler.drafter.payoff.acceptance_length if engine.guesses else 1.0
        same = written[id(engine)] == written[id(engines[0])]
        given = "streamed" if stream else "at once"
        print(f"| {batch} | {temperature} | {given} | {name} | {batch * new / seconds:,.0f} | {times[0] / seconds:.2f} | {accepted:.2f} | {same} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--profile", action="store_true", help="where the engine's time goes, without the peer")
    parser.add_argument("--guess", type=Path, metavar="MODEL", help="a trained model folder with an MTP block")
    parser.add_argument("--floor", action="store_true", help="what a step must read and multiply, and how fast this machine does")
    arguments = parser.parse_args()
    print(f"threads {torch.get_num_threads()}\n")
    if arguments.floor:
        return floor()
    if arguments.guess:
        print("| batch | temperature | given out | how | tokens/s | ratio | acceptance length | same tokens |\n|---|---|---|---|---|---|---|---|")
        for temperature in (0.0, 1.0):
            for batch in arguments.batch:
                for stream in (False, True):
                    guess(arguments.guess, batch, temperature, stream, arguments.passes, arguments.new)
        return
    print("| batch | dtype | transformers tokens/s | gristmill tokens/s | ratio | tokens equal |\n|---|---|---|---|---|---|")
    for dtype in arguments.dtype:
        for batch in arguments.batch:
            compare(batch, getattr(torch, dtype), arguments.passes, arguments.prompt, arguments.new, arguments.profile)


if __name__ == "__main__":
    main()
