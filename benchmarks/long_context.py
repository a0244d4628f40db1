"""Long contexts on the tiny model: reading in chunks, then decoding behind them, and what the process holds.

    python benchmarks/long_context.py --longest 131072

One growing context: at each length, the seconds its reading has taken so far, the time of a decoded token (median of 32; of it, the time inside the
attention layers) and the resident memory at its highest. Mamba layers cost the same behind any context; attention reads every key.
"""

import argparse
import resource
import time
from statistics import median

import torch

from model import Cache, HybridConfig, HybridLM


def watch_attention(lm: HybridLM, spent: list[float]) -> None:
    """Adds the seconds of every call of an attention layer to spent[0]."""
    for layer in lm.layers:
        if layer.kind == "*":
            forward = layer.mixer.forward

            def timed(*args, forward=forward, **kwargs):
                begun = time.perf_counter()
                out = forward(*args, **kwargs)
                spent[0] += time.perf_counter() - begun
                return out

            layer.mixer.forward = timed


@torch.inference_mode()
def measure(lm: HybridLM, longest: int, chunk_size: int) -> None:
    spent = [0.0]
    watch_attention(lm, spent)
    cache = Cache(lm, 2, longest + 64)
    ids = torch.randint(0, lm.config.vocab_size, (1, longest), generator=torch.Generator().manual_seed(0))
    print("| context | read, s | tokens/s of the last chunk | decode, ms a token | in attention, ms | in all else, ms | highest RSS, MB |")
    print("|---|---|---|---|---|---|---|")
    read, at, wanted = 0.0, 0, 2048
    while at < longest:
        chunk = min(chunk_size, longest - at)
        begun = time.perf_counter()
        lm.hidden(ids[:, at:at + chunk], cache=cache, slots=[0])
        last = time.perf_counter() - begun
        read, at = read + last, at + chunk
        if at >= wanted or at == longest:
            cache.copy([0], [1])
            whole, attention = [], []
            for _ in range(32):
                spent[0], begun = 0.0, time.perf_counter()
                lm(ids[:, :1], cache=cache, slots=[1])
                whole.append(1e3 * (time.perf_counter() - begun))
                attention.append(1e3 * spent[0])
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rest = median(a - b for a, b in zip(whole, attention))
            print(f"| {at:,} | {read:.1f} | {chunk / last:,.0f} | {median(whole):.2f} | {median(attention):.2f} | {rest:.2f} | {held:,.0f} |", flush=True)
            wanted *= 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=131072)
    parser.add_argument("--chunk", type=int, default=2048, help="tokens read at once")
    arguments = parser.parse_args()
    measure(HybridLM(HybridConfig.tiny(), seed=0).eval(), arguments.longest, arguments.chunk)


if __name__ == "__main__":
    main()
