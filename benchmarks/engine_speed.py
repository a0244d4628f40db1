"""Generation: the engine against transformers' `generate`, same weights, same prompts, greedy, alternating in one run.

    python benchmarks/engine_speed.py                          # batch 1 and 16, float32 and bf16
    python benchmarks/engine_speed.py --batch 16 --dtype bfloat16 --profile
    python benchmarks/engine_speed.py --guess MODEL --batch 1 8    # guessing ahead with a trained model's MTP block against plain decoding

The 18.7M-parameter configuration of benchmarks/model_speed.py; prompts of 32 tokens, 128 new ones (nothing stops early). Tokens/s counts new tokens
over the whole call, prompts included; the best of several passes counts.
"""

import argparse
import cProfile
import pstats
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from model_speed import SHAPE, best, theirs

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


def guess(folder: Path, batch: int, temperature: float, passes: int, new: int) -> None:
    """Plain decoding, always 2 or 3 guesses, and 2 while they pay: same prompts, same tokens, in turns."""
    from tokenizers import Tokenizer

    lm, tokenizer = HybridLM.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = (["The history of the city", "In the year", "What is the sum of 12 and 7?", "The following is a list of"] * batch)[:batch]
    wanted = SamplingParams(temperature=temperature, max_tokens=new, ignore_eos=True, seed=3)
    engines = [Engine(lm, tokenizer, max_slots=batch, max_length=2 * new, guesses=guesses, always_guess=always)
               for guesses, always in ((0, False), (2, True), (3, True), (2, False))]
    written = {}

    def work(engine: Engine) -> None:
        written[id(engine)] = [o.outputs[0].token_ids for o in engine.generate(prompts, wanted)]

    times = best(passes, *(lambda engine=engine: work(engine) for engine in engines))
    for name, engine, seconds in zip(("plain", "2 guesses, always", "3 guesses, always", "2 guesses while they pay"), engines, times):
        accepted = engine.scheduler.drafter.payoff.acceptance_length if engine.guesses else 1.0
        same = written[id(engine)] == written[id(engines[0])]
        print(f"| {batch} | {temperature} | {name} | {batch * new / seconds:,.0f} | {times[0] / seconds:.2f} | {accepted:.2f} | {same} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--profile", action="store_true", help="where the engine's time goes, without the peer")
    parser.add_argument("--guess", type=Path, metavar="MODEL", help="a trained model folder with an MTP block")
    arguments = parser.parse_args()
    print(f"threads {torch.get_num_threads()}\n")
    if arguments.guess:
        print("| batch | temperature | how | tokens/s | ratio | acceptance length | same tokens |\n|---|---|---|---|---|---|---|")
        for temperature in (0.0, 1.0):
            for batch in arguments.batch:
                guess(arguments.guess, batch, temperature, arguments.passes, arguments.new)
        return
    print("| batch | dtype | transformers tokens/s | gristmill tokens/s | ratio | tokens equal |\n|---|---|---|---|---|---|")
    for dtype in arguments.dtype:
        for batch in arguments.batch:
            compare(batch, getattr(torch, dtype), arguments.passes, arguments.prompt, arguments.new, arguments.profile)


if __name__ == "__main__":
    main()
