"""Long contexts on the tiny model: reading in chunks, then decoding behind them, and what the process holds.

    python benchmarks/long_context.py --longest 131072

One growing context: at each length, the seconds its reading has taken so far, the time of a decoded token (median of 32, and how much of it is more than
behind the shortest context) and the resident memory at its highest. Mamba layers cost the same behind any context; attention reads every key.
"""

import argparse
import resource
import time
from statistics import median

import torch

from model import Cache, HybridConfig, HybridLM


@torch.inference_mode()
def measure(lm: HybridLM, longest: int, chunk_size: int) -> None:
    cache = Cache(lm, 2, longest + 64)
    ids = torch.randint(0, lm.config.vocab_size, (1, longest), generator=torch.Generator().manual_seed(0))
    print("| context | read, s | tokens/s of the last chunk | decode, ms a token | of it more than at first | highest RSS, MB |")
    print("|---|---|---|---|---|---|")
    read, at, wanted, least = 0.0, 0, 2048, None
    while at < longest:
        chunk = min(chunk_size, longest - at)
        begun = time.perf_counter()
        lm.hidden(ids[:, at:at + chunk], cache=cache, slots=[0])
        last = time.perf_counter() - begun
        read, at = read + last, at + chunk
        if at >= wanted or at == longest:
            cache.copy([0], [1])
            times = []
            for _ in range(32):
                begun = time.perf_counter()
                lm(ids[:, :1], cache=cache, slots=[1])
                times.append(1e3 * (time.perf_counter() - begun))
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            least = least or median(times)
            print(f"| {at:,} | {read:.1f} | {chunk / last:,.0f} | {median(times):.2f} | {median(times) - least:.2f} | {held:,.0f} |", flush=True)
            wanted *= 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=131072)
    parser.add_argument("--chunk", type=int, default=2048, help="tokens read at once")
    arguments = parser.parse_args()
    measure(HybridLM(HybridConfig.tiny(), seed=0).eval(), arguments.longest, arguments.chunk)


if __name__ == "__main__":
    main()
