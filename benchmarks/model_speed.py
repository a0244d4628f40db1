"""A training step (forward and backward) against transformers' NemotronHForCausalLM: same weights, same batch, same run.

    python benchmarks/model_speed.py [--passes 8] [--profile]

The configuration is 18.7M parameters: `MEMEM*EMEM*E`, hidden 256, 8 Mamba heads x 64 with a state of 64 in 2 groups, 16 experts of 256 of which 2
work, a shared one of 512, vocabulary 8192; batches of 4 x 512 tokens. transformers holds bf16 weights; ours holds float32 masters and computes in
bf16, casts included. Passes alternate and the best of each counts, for other work on the machine only ever slows one down. Beside the two: the
share of the machine's own bf16 matmul rate, measured in the same run, that our step's matrix products amount to (`benchmarks/engine_speed.py` decodes).
"""

import argparse
import tempfile
import time
from collections.abc import Callable

import torch

from model import HybridConfig, HybridLM
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


def step(lm: HybridLM, ids_BT: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of ours."""
    labels_BT, mask_BT = ids_BT.roll(-1, 1), torch.ones(ids_BT.shape)

    def run() -> None:
        language_loss(lm, ids_BT, labels_BT, mask_BT, mtp_weight=0.0).total.backward()
        for parameter in lm.parameters():
            parameter.grad = None

    return run


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


def train(arguments: argparse.Namespace) -> None:
    lm = ours()
    reference = theirs(lm).train()
    ids_BT = torch.randint(0, SHAPE["vocab_size"], (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))

    def their_step() -> None:
        reference(ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        reference.zero_grad(set_to_none=True)

    mine, other = best(arguments.passes, step(lm, ids_BT), their_step)
    tokens = BATCH * LENGTH
    print(f"threads {torch.get_num_threads()}\n\n| forward + backward, bf16 | tokens/s | ratio |\n|---|---|---|")
    print(f"| transformers | {tokens / other:,.0f} | 1 |\n| gristmill | {tokens / mine:,.0f} | {other / mine:.2f} |")
    print(f"\n{matmul_flops(lm) * tokens / mine / peak():.0%} of this machine's bf16 matmul rate")
    if arguments.profile:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as seen:
            step(lm, ids_BT)()
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
