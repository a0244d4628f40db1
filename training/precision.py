"""Which format each matrix product of the model runs in: a table of rules over module names, applied to plain modules.

A GEMM here is a function (x [..., K], w [N, K]) -> y [..., N] in the dtype of x; `PrecisionPolicy.apply` sets it as the `gemm` of every
projection, router and expert stack. The NVFP4 recipe is Nemotron 3's (white paper section 2.4): NVFP4 by default, MXFP8 for Mamba's
out_proj (40% of its values flushed to zero in NVFP4), bfloat16 for the last 15% of layers, attention's projections, the latent projections,
the MTP block and the head, float32 for the router. Which copy of which tensor is rounded how is TransformerEngine's NVFP4 recipe:

    fprop   x 1x16 nearest               times W 16x16 nearest
    dgrad   g 1x16 stochastic            times the same W
    wgrad   g Hadamard, 1x16 stochastic  times x Hadamard, 1x16 nearest      (blocks along tokens)

Operands are exact in bfloat16 and multiplied as such (`kernels/nvfp4_fast.py`). Weights are quantized from their bfloat16 copies, as
Megatron does; a weight gradient is rounded to bfloat16 once and accumulated in the float32 master's gradient.

Stochastic rounding is seeded by (run seed, step, module name, call, tensor), so that a resumed run repeats it bit for bit. Calls are
counted from `set_step` in forward passes that build a graph; evaluation in between changes nothing.

Shapes: T tokens, K in, N out.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import mxfp8_fast, nvfp4_fast
from kernels.nvfp4 import gemm_alpha
from model.moe import Router

RECIPES = ("nvfp4", "bf16", "fp32")
BF16_TAIL = 0.15  # of the layers, at the end: Nemotron 3


@dataclass(frozen=True)
class Rule:
    """The first rule whose pattern is found in a module's name decides."""

    pattern: str
    precision: str
    why: str


NVFP4_RULES = (
    Rule(r"\.gate$", "fp32", "the router decides by small differences of scores"),
    Rule(r"^lm_head$", "bf16", "the head stays out of FP4"),
    Rule(r"^mtp\.", "bf16", "the MTP block stays out of FP4"),
    Rule(r"^<tail>\.", "bf16", "the last 15% of layers"),
    Rule(r"_latent_proj$", "bf16", "latent projections"),
    Rule(r"\.[qkvo]_proj$", "bf16", "attention projections"),
    Rule(r"\.mixer\.out_proj$", "mxfp8", "Mamba out_proj: NVFP4 flushes up to 40% of its values to zero"),
    Rule(r"", "nvfp4", "the default"),
)
RULES = {
    "nvfp4": NVFP4_RULES,
    "bf16": (NVFP4_RULES[0], Rule(r"", "bf16", "the recipe")),
    "fp32": (Rule(r"", "fp32", "the recipe"),),
}


def tail_layers(layers: int) -> int:
    """How many last layers stay in bfloat16: 15% to the nearest even number, which gives Super's 14 of 88 and Ultra's 16 of 108."""
    return 2 * round(BF16_TAIL * layers / 2)


@dataclass(frozen=True)
class Row:
    """One line of `PrecisionPolicy.describe`. `share` of the forward pass's GEMM FLOPs (0..1); `why`: the rule, and any fallback or padding."""

    module: str
    precision: str
    share: float
    why: str


class PrecisionPolicy:
    """`PrecisionPolicy("nvfp4", seed=run_seed).apply(lm)`, then `set_step(step)` before every training step.

    ValueError for an unknown recipe.
    """

    def __init__(self, recipe: str = "nvfp4", seed: int = 0) -> None:
        if recipe not in RECIPES:
            raise ValueError(f"precision recipe must be one of {', '.join(RECIPES)}, not {recipe!r}")
        self.recipe, self.seed, self.step = recipe, seed, 0
        self._gemms: list[NVFP4Gemm] = []

    def apply(self, lm: nn.Module) -> "PrecisionPolicy":
        """Sets `gemm` on every module that has one, and the model's compute dtype: bfloat16, or float32 for the fp32 recipe."""
        for name, module, precision, _ in self._decide(lm):
            module.gemm = F.linear if precision == self._unasked(module) else self._gemm(precision, name)
        if hasattr(lm, "compute_dtype"):
            lm.compute_dtype = torch.float32 if self.recipe == "fp32" else torch.bfloat16
            lm.while_recomputing = self._uncounted
        return self

    def set_step(self, step: int) -> None:
        """Starts a training step: the random bits of its stochastic rounding follow from `step` alone."""
        self.step = step
        for gemm in self._gemms:
            gemm.calls = 0

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Around products made a second time for their gradients, whose random bits were chosen the first time: no product counts twice."""
        calls = [gemm.calls for gemm in self._gemms]
        try:
            yield
        finally:
            for gemm, before in zip(self._gemms, calls, strict=True):
                gemm.calls = before

    def describe(self, lm: nn.Module) -> list[Row]:
        """A row a GEMM module, in the model's order, with its share of the GEMM FLOPs of one token's forward pass."""
        decided = self._decide(lm)
        flops = [_flops(lm, name, module) for name, module, _, _ in decided]
        total = sum(flops) or 1
        return [Row(name, precision, work / total, why) for (name, _, precision, why), work in zip(decided, flops)]

    def _decide(self, lm: nn.Module) -> list[tuple[str, nn.Module, str, str]]:
        layers = len(getattr(lm, "layers", ()))
        tail = range(layers - tail_layers(layers), layers)
        decided = []
        for name, module in lm.named_modules():
            if not hasattr(module, "gemm"):
                continue
            match = re.match(r"layers\.(\d+)\.", name)
            spelled = f"<tail>.{name}" if match and int(match[1]) in tail else name
            rule = next(rule for rule in RULES[self.recipe] if re.search(rule.pattern, spelled))
            decided.append((name, module, *_fit(rule, module)))
        return decided

    def _unasked(self, module: nn.Module) -> str:
        """What a module computes in anyway: its kernels know that product and fuse what surrounds it."""
        return "fp32" if self.recipe == "fp32" or isinstance(module, Router) else "bf16"

    def _gemm(self, precision: str, name: str):
        if precision == "mxfp8":
            return mxfp8_gemm
        assert precision == "nvfp4", precision
        gemm = NVFP4Gemm(self, name)
        self._gemms.append(gemm)
        return gemm


def _shapes(module: nn.Module) -> list[tuple[int, int]]:
    """(N, K) of each weight a module multiplies by."""
    return [tuple(p.shape[-2:]) for p in module.parameters(recurse=False) if p.dim() >= 2]


def _fit(rule: Rule, module: nn.Module) -> tuple[str, str]:
    """(precision, why): the rule's, or bfloat16 where the format's blocks do not divide the weight."""
    shapes = _shapes(module)
    if rule.precision == "mxfp8" and any(n % 32 or k % 32 for n, k in shapes):
        return "bf16", f"{rule.why}; bf16 because MXFP8 needs both sides in multiples of 32, here {shapes}"
    if rule.precision == "nvfp4":
        if any(k % 16 for _, k in shapes):
            return "bf16", f"{rule.why}; bf16 because NVFP4 needs inputs in multiples of 16, here {shapes}"
        if any(n % 16 for n, _ in shapes):
            return "nvfp4", f"{rule.why}; outputs padded with zeros to a multiple of 16, here {shapes}"
    return rule.precision, rule.why


def _flops(lm: nn.Module, name: str, module: nn.Module) -> float:
    """Multiply-adds a token of a module: experts count their chosen ones, MTP its depths, the head once more a depth."""
    work = sum(n * k for n, k in _shapes(module))
    config = getattr(lm, "config", None)
    if any(p.dim() == 3 for p in module.parameters(recurse=False)):
        work *= config.num_experts_per_tok
    depth = getattr(config, "mtp_depth", 0)
    return work * (depth if name.startswith("mtp.") else 1 + depth if name == "lm_head" else 1)


def mxfp8_gemm(x: Tensor, w_NK: Tensor) -> Tensor:
    """1x32 blocks along the contraction axis of each of the three products, E4M3 throughout, to nearest."""
    x_TK = x.bfloat16().reshape(-1, x.shape[-1])
    return _MXFP8.apply(x_TK, w_NK.bfloat16()).view(*x.shape[:-1], -1).to(x.dtype)


class NVFP4Gemm:
    """The NVFP4 product of one module; experts call it once an expert and product, which is what `calls` tells apart."""

    def __init__(self, policy: PrecisionPolicy, name: str) -> None:
        self.policy, self.name, self.calls = policy, name, 0

    def __call__(self, x: Tensor, w_NK: Tensor) -> Tensor:
        seeds = (0, 0)
        if torch.is_grad_enabled():
            seeds = tuple(self._seed(role) for role in ("dgrad", "wgrad"))
            self.calls += 1
        x_TK = x.bfloat16().reshape(-1, x.shape[-1])
        return _NVFP4.apply(x_TK, w_NK.bfloat16(), seeds).view(*x.shape[:-1], -1).to(x.dtype)

    def _seed(self, role: str) -> int:
        text = f"{self.policy.seed}/{self.policy.step}/{self.name}/{self.calls}/{role}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class _NVFP4(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TK: Tensor, w_NK: Tensor, seeds: tuple[int, int]) -> Tensor:
        N = w_NK.shape[0]
        x = nvfp4_fast.rows(x_TK)
        w = nvfp4_fast.tiles(_pad(w_NK, rows=-N % 16))  # zero rows: a side of Mamba's in_proj need not divide by 16
        ctx.save_for_backward(x_TK, w.values)
        ctx.w_amax, ctx.N, ctx.seeds = w.amax, N, seeds
        return nvfp4_fast.multiply(x.values, w.values[:N].t(), float(gemm_alpha(x.amax, w.amax)))

    @staticmethod
    def backward(ctx, g_TN: Tensor):
        x_TK, w_values = ctx.saved_tensors
        g_TN = g_TN.contiguous()
        dx_TK = dw_NK = None
        if ctx.needs_input_grad[0]:
            g = nvfp4_fast.rows(_pad(g_TN, columns=-ctx.N % 16), "stochastic", ctx.seeds[0])
            dx_TK = nvfp4_fast.multiply(g.values, w_values, float(gemm_alpha(g.amax, ctx.w_amax)))
        if ctx.needs_input_grad[1]:
            g, x = nvfp4_fast.columns(g_TN, "stochastic", ctx.seeds[1]), nvfp4_fast.columns(x_TK)
            dw_NK = nvfp4_fast.multiply(g.values.t(), x.values, float(gemm_alpha(g.amax, x.amax)))
        return dx_TK, dw_NK, None


class _MXFP8(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TK: Tensor, w_NK: Tensor) -> Tensor:
        ctx.save_for_backward(x_TK, w_NK)
        return mxfp8_fast.rows(x_TK) @ mxfp8_fast.rows(w_NK).t()

    @staticmethod
    def backward(ctx, g_TN: Tensor):
        x_TK, w_NK = ctx.saved_tensors
        g_TN = g_TN.contiguous()
        dx_TK = dw_NK = None
        if ctx.needs_input_grad[0]:
            dx_TK = mxfp8_fast.rows(g_TN) @ mxfp8_fast.columns(w_NK)
        if ctx.needs_input_grad[1]:
            dw_NK = mxfp8_fast.columns(g_TN).t() @ mxfp8_fast.columns(x_TK)
        return dx_TK, dw_NK


def _pad(x: Tensor, rows: int = 0, columns: int = 0) -> Tensor:
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x
