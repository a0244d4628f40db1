"""A training step (forward and backward) of the 18.7M-parameter model: against transformers, where its time goes, how it scales, what memory it takes.

    python benchmarks/model_speed.py                    # tokens/s beside transformers' NemotronHForCausalLM: same weights, same batch, same run
    python benchmarks/model_speed.py --mode profile     # milliseconds and share of each part of our step, and the least its products could take
    python benchmarks/model_speed.py --mode length      # (or batch, experts) one curve
    python benchmarks/model_speed.py --mode memory      # the scan's backward over length and chunk; a step with and without recomputation

The configuration is `MEMEM*EMEM*E`, hidden 256, 8 Mamba heads x 64 with a state of 64 in 2 groups, 16 experts of 256 of which 2 work, a shared one of
512, vocabulary 8192; batches of 4 x 512 tokens. transformers holds bf16 weights; ours, as it trains, float32 masters, and in a row of
its own bf16 weights too.
transformers runs as it comes, in a process of its own; a second one has the allocator setting our training makes (`training.allocator`). Passes alternate
and the best of each counts, for other work on the machine only ever slows one down. `benchmarks/engine_speed.py` decodes.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from model import HybridConfig, HybridLM
from training.allocator import keep_freed_memory
from training.language_loss import language_loss

SHAPE = dict(
    vocab_size=8192, hidden_size=256, num_attention_heads=8, num_key_value_heads=2, head_dim=32, mamba_num_heads=8, mamba_head_dim=64, ssm_state_size=64,
    n_groups=2, n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=256, moe_shared_expert_intermediate_size=512,
    moe_latent_size=None, mtp_depth=0, routed_scaling_factor=1.0, pattern="MEMEM*EMEM*E",
)  # fmt: skip
BATCH, LENGTH = 4, 512


def best(passes: int, *works: Callable[[], None]) -> list[float]:
    """Least seconds of each, taken in turns; one pass more warms up."""
    times = [[] for _ in works]
    for index in range(passes + 1):
        for work, seen in zip(works, times):
            begun = time.perf_counter()
            work()
            if index:
                seen.append(time.perf_counter() - begun)
    return [min(seen) for seen in times]


def ours(**changes) -> HybridLM:
    return HybridLM(HybridConfig(**SHAPE | changes), seed=0, compute_dtype=torch.bfloat16)


def theirs(lm: HybridLM, dtype: torch.dtype = torch.bfloat16):
    """transformers' model with the same weights."""
    from transformers import NemotronHForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder)
        return NemotronHForCausalLM.from_pretrained(folder, dtype=dtype)


def with_bf16_weights(lm: HybridLM) -> HybridLM:
    """Ours as transformers' is: no float32 masters, so nothing to cast."""
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder)
        return HybridLM.from_pretrained(folder, dtype=torch.bfloat16, compute_dtype=torch.bfloat16).train()


def batch_of(batch: int = BATCH, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0))


def step(lm: HybridLM, ids_BT: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of ours."""
    labels_BT, mask_BT = ids_BT.roll(-1, 1), torch.ones(ids_BT.shape)

    def run() -> None:
        language_loss(lm, ids_BT, labels_BT, mask_BT, mtp_weight=0.0).total.backward()
        for parameter in lm.parameters():
            parameter.grad = None

    return run


# -- processes of their own ----------------------------------------------------------------------------------------


def _their_steps(pipe: Any, kept: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    if kept:
        keep_freed_memory()
    reference, ids_BT = theirs(ours()).train(), batch_of()
    while pipe.recv():
        reference(ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        reference.zero_grad(set_to_none=True)
        pipe.send(True)


@contextmanager
def their_step(kept: bool):
    """transformers' step, asked for through a pipe."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_their_steps, args=(other, kept, torch.get_num_threads()), daemon=True)
    process.start()
    try:
        yield lambda: (pipe.send(True), pipe.recv())
    finally:
        pipe.send(False)
        process.join()


def in_fresh_process(work: Callable, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


# -- what is measured ----------------------------------------------------------------------------------------------


def peak() -> float:
    """The machine's own bf16 matmul rate, FLOP/s, on 2048 x 2048 x 2048."""
    a, b = torch.randn(2048, 2048, dtype=torch.bfloat16), torch.randn(2048, 2048, dtype=torch.bfloat16)
    return 2 * 2048**3 / best(8, lambda: a @ b)[0]


def matmul_flops(lm: HybridLM) -> float:
    """FLOP a token of forward and backward: 6 a weight that works. The embedding, the experts not chosen and the products without weights are left out."""
    config = lm.config
    idle = 1 - config.num_experts_per_tok / config.n_routed_experts
    resting = sum(parameter.numel() for name, parameter in lm.named_parameters() if ".experts." in name) * idle
    return 6.0 * (sum(parameter.numel() for parameter in lm.parameters()) - lm.embeddings.weight.numel() - resting)


def against_transformers(passes: int) -> None:
    lm, again = ours(), ours()
    again.recompute = True
    ids_BT, tokens = batch_of(), BATCH * LENGTH
    with ExitStack() as stack:
        works = {"transformers": stack.enter_context(their_step(False)), "transformers, freed memory kept": stack.enter_context(their_step(True)),
                 "gristmill": step(lm, ids_BT), "gristmill, bf16 weights": step(with_bf16_weights(lm), ids_BT),
                 "gristmill, recompute: layers": step(again, ids_BT)}
        seconds = dict(zip(works, best(passes, *works.values())))
    print(f"threads {torch.get_num_threads()}\n\n| forward + backward, bf16 | tokens/s | ratio |\n|---|---|---|")
    for name, spent in seconds.items():
        print(f"| {name} | {tokens / spent:,.0f} | {seconds['transformers'] / spent:.2f} |")
    rate = peak()
    print(f"\n{matmul_flops(lm) * tokens / seconds['gristmill'] / rate:.0%} of this machine's bf16 matmul rate, {rate / 1e9:,.0f} GFLOP/s")


PARTS = (  # what a profiler's row belongs to, by the beginning of its name
    ("matrix products", "times", "outer", "aten::mm", "aten::bmm", "aten::addmm"), ("SSD scan", "scan", "_Scan"), ("attention", "_Attention"),
    ("causal convolution", "convolve", "_Conv"), ("norms", "gate", "_RMSNorm", "_GatedRMSNorm"), ("softmax of the head", "_LinearCrossEntropy"),
    ("experts: gather, relu², combine", "_Experts", "_ReluSquared"), ("router", "_Scores"),
    ("casts and copies", "aten::copy_", "aten::cat", "aten::fill_"), ("all else: small operations, autograd", ""),
)


@contextmanager
def kernels_named():
    """Compiled kernels under their own names: by itself the profiler sees only the autograd nodes that call several of them."""
    from torch.profiler import record_function

    from kernels import conv, matmul, norms, ssd

    def named(name: str, kernel: Callable) -> Callable:
        def run(*arguments, **options):
            with record_function(name):
                return kernel(*arguments, **options)
        return run

    inside = ((matmul, "times_turned", "times", "outer"), (ssd, "scan", "scan_backward"), (conv, "convolve", "convolve_backward"),
              (norms, "gate", "gate_backward"))
    plain = [(room, name, getattr(room, name)) for room, *names in inside for name in names]
    try:
        for room, name, kernel in plain:
            setattr(room, name, named(name, kernel))
        yield
    finally:
        for room, name, kernel in plain:
            setattr(room, name, kernel)


def where_time_goes(passes: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    lm, ids_BT = ours(), batch_of()
    run = step(lm, ids_BT)
    whole = best(passes, run)[0]
    least: dict[str, float] = {}
    for _ in range(passes):
        with profile(activities=[ProfilerActivity.CPU]) as seen, kernels_named():
            run()
        spent = dict.fromkeys((part for part, *_ in PARTS), 0.0)
        for row in seen.key_averages():
            part = next(part for part, *names in PARTS if any(row.key.startswith(name) for name in names))
            spent[part] += row.self_cpu_time_total / 1e3
        least = {part: min(value, least.get(part, value)) for part, value in spent.items()}
    floor = matmul_flops(lm) * ids_BT.numel() / peak() * 1e3
    print(f"threads {torch.get_num_threads()}; a step takes {whole * 1e3:.0f} ms; its products take {floor:.0f} ms at the rate of a 2048 x 2048 x 2048 one\n")
    print("| part | ms, under the profiler | share |\n|---|---|---|")
    for part, value in least.items():
        print(f"| {part} | {value:.1f} | {value / sum(least.values()):.0%} |")


def curve(mode: str, passes: int) -> None:
    print(f"threads {torch.get_num_threads()}\n")
    if mode == "length":
        mamba = dict(pattern="MMMMM")
        print("| length (batch 1) | whole model, tokens/s | five Mamba layers, tokens/s |\n|---|---|---|")
        for length in (512, 1024, 2048, 4096, 8192, 16384):
            whole, scan = best(passes, step(ours(), batch_of(1, length)), step(ours(**mamba), batch_of(1, length)))
            print(f"| {length:,} | {length / whole:,.0f} | {length / scan:,.0f} |")
    if mode == "batch":
        print("| rows of 512 tokens | tokens/s |\n|---|---|")
        for rows in (1, 2, 4, 8, 16):
            print(f"| {rows} | {rows * LENGTH / best(passes, step(ours(), batch_of(rows)))[0]:,.0f} |")
    if mode == "experts":
        print("| experts, 2 of which work | parameters | tokens/s |\n|---|---|---|")
        for count in (4, 8, 16, 32, 64, 128):
            lm = ours(n_routed_experts=count)
            seconds = best(passes, step(lm, batch_of()))[0]
            print(f"| {count} | {sum(p.numel() for p in lm.parameters()) / 1e6:.0f}M | {BATCH * LENGTH / seconds:,.0f} |")


def peak_growth(work: Callable[[], None]) -> int:
    """Bytes by which the process grew, at its largest, over where it stood (Linux)."""
    status = lambda key: int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def scan_growth(chunk: int, length: int) -> int:
    """What the scan's backward adds, over inputs, outputs and what the forward kept; `chunk` replaces the kernels' own."""
    from kernels import ssd, ssd_scan

    ssd_scan.CHUNK = chunk

    def forward(length: int):
        x, B, C = (torch.randn(1, length, count, 64).requires_grad_() for count in (8, 2, 2))
        y, _ = ssd.ssd(x, torch.rand(1, length, 8), -torch.ones(8), B, C, torch.ones(8))
        return y, (x, B, C)

    y, leaves = forward(chunk)
    torch.autograd.grad(y.sum(), leaves)  # compiles
    y, leaves = forward(length)
    slope = torch.ones_like(y)
    return peak_growth(lambda: torch.autograd.grad(y, leaves, slope))


def step_growth(recompute: bool, length: int) -> tuple[int, float]:
    lm = ours()
    lm.recompute = recompute
    step(lm, batch_of(1, 64))()
    run = step(lm, batch_of(BATCH, length))
    return peak_growth(run), best(2, run)[0]


def memory() -> None:
    lengths = (1024, 4096, 16384)
    print("Peak growth in the scan's backward, MB (one row, 8 heads, state 64 x 64)\n")
    print("| chunk |" + "".join(f" {n:,} |" for n in lengths) + " bytes a position |\n|---|" + "---|" * (len(lengths) + 1))
    for chunk in (16, 32, 64):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NUMBA_CACHE_DIR"] = folder  # the usual cache holds code for the usual chunk
            grown = [in_fresh_process(scan_growth, chunk, length) for length in lengths]
        print(f"| {chunk} |" + "".join(f" {g / 1e6:.1f} |" for g in grown) + f" {(grown[-1] - grown[0]) / (lengths[-1] - lengths[0]):,.0f} |")
    del os.environ["NUMBA_CACHE_DIR"]
    print("\nPeak growth in a step, MB, and tokens/s\n\n| 4 rows of | recompute: none | tokens/s | recompute: layers | tokens/s |\n|---|---|---|---|---|")
    for length in (512, 2048):
        (plain, slow), (again, slower) = (in_fresh_process(step_growth, recompute, length) for recompute in (False, True))
        print(f"| {length:,} | {plain / 1e6:.0f} | {BATCH * length / slow:,.0f} | {again / 1e6:.0f} | {BATCH * length / slower:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("transformers", "profile", "length", "batch", "experts", "memory"), default="transformers")
    parser.add_argument("--passes", type=int, default=8)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.mode == "transformers":
        against_transformers(arguments.passes)
    elif arguments.mode == "profile":
        where_time_goes(arguments.passes)
    elif arguments.mode == "memory":
        memory()
    else:
        curve(arguments.mode, arguments.passes)


if __name__ == "__main__":
    main()
