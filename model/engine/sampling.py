"""Choosing the next token of every slot at once, the same alone or in a batch.

One uniform number a token, computed from (stream key, position) by a counter-based hash, so no generator state exists to be
shared, saved or disturbed by neighbours. The token is where that number falls in the cumulative distribution, taken in
vocabulary order. Truncation works by value (everything at least as large as the smallest kept logit stays), so ties, frequent in
bf16, do not depend on a sort's order.

Shapes: A active rows, V vocabulary.
"""
from __future__ import annotations

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Steele, Lea, Flood 2014: the finaliser of SplitMix64 on uint64 counters (wraps by design)."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        return x ^ (x >> np.uint64(31))


def stream_key(seed: int, sample: int) -> int:
    """The 64-bit key of sample number `sample` of a request seeded with `seed` (any integer)."""
    words = np.array([seed & 0xFFFFFFFFFFFFFFFF, (seed >> 64) & 0xFFFFFFFFFFFFFFFF, sample], dtype=np.uint64)
    key = np.zeros(1, dtype=np.uint64)
    for word in words:
        key = _splitmix64(key ^ word)
    return int(key[0])


def uniforms(keys_A: np.ndarray, positions_A: np.ndarray) -> np.ndarray:
    """Uniform float64 numbers in [0, 1), 53 bits each, a pure function of (key, position)."""
    bits = _splitmix64(_splitmix64(keys_A.astype(np.uint64)) ^ positions_A.astype(np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample(logits_AV: torch.Tensor, temperature_A: torch.Tensor, top_k_A: torch.Tensor, top_p_A: torch.Tensor,
           uniform_A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(tokens int64 [A], log normalisers [A] or None). logits float32; temperature 0 takes the maximum; top_k 0 and top_p 1 are off;
    uniform float64 in [0, 1).

    Each row's token depends on that row alone. The normalisers, log sum exp(logits), fall out of rows that nothing scales or truncates,
    which is how RL samples, and are nan for others; `logprobs` takes them."""
    greedy_A = temperature_A == 0
    if bool(greedy_A.all()):
        return logits_AV.argmax(-1), None
    scaled_AV = logits_AV if bool((temperature_A == 1).all()) else logits_AV / torch.where(greedy_A, 1.0, temperature_A)[:, None]
    cut_A = (top_k_A > 0) | (top_p_A < 1)
    truncated = torch.nonzero(cut_A & ~greedy_A)[:, 0]
    if len(truncated):
        rows = scaled_AV[truncated]
        floor = _smallest_kept(rows, top_k_A[truncated], top_p_A[truncated])
        scaled_AV = scaled_AV.index_put((truncated,), rows.masked_fill(rows < floor[:, None], -torch.inf))
    highest_A1 = scaled_AV.amax(-1, keepdim=True)
    weights_AV = (scaled_AV - highest_A1).exp_()
    cumulative_AV = weights_AV.cumsum(-1, dtype=torch.float64)  # float32 sums lose tokens of probability under 1e-7
    total_A = cumulative_AV[:, -1]
    tokens_A = torch.searchsorted(cumulative_AV, (uniform_A * total_A)[:, None], right=True)[:, 0]
    beyond_A = tokens_A >= logits_AV.shape[-1]  # a product rounded up to the total falls off the end
    if bool((greedy_A | beyond_A).any()):
        tokens_A = torch.where(greedy_A | beyond_A, logits_AV.argmax(-1), tokens_A)
    normaliser_A = highest_A1[:, 0] + total_A.log().float()
    return tokens_A, normaliser_A.masked_fill(cut_A | (temperature_A != 1), torch.nan)


def logprobs(logits_AV: torch.Tensor, tokens_A: torch.Tensor, normaliser_A: torch.Tensor | None = None) -> torch.Tensor:
    """log softmax(logits)[token] as float32 [A]: the model's own distribution, before temperature and truncation."""
    if normaliser_A is None:
        normaliser_A = normalisers(logits_AV)
    elif len(missing := torch.nonzero(normaliser_A.isnan())[:, 0]):
        normaliser_A = normaliser_A.index_put((missing,), normalisers(logits_AV[missing]))
    return logits_AV.gather(-1, tokens_A[:, None])[:, 0] - normaliser_A


def normalisers(logits_AV: torch.Tensor) -> torch.Tensor:
    """log sum exp(logits) of each row, [A], the same alone as among others: one long row by itself torch would cut into a piece for every thread."""
    return torch.logsumexp(logits_AV.expand(2, -1), -1)[:1] if len(logits_AV) == 1 else torch.logsumexp(logits_AV, -1)


def most_likely(logits_TV: torch.Tensor, count: int, normaliser_T: torch.Tensor | None = None) -> list[list[tuple[int, float]]]:
    """For each row the `count` tokens of largest log softmax(logits), largest first, with it."""
    values_TK, tokens_TK = logits_TV.topk(min(count, logits_TV.shape[-1]), dim=-1)
    values_TK = values_TK - (normalisers(logits_TV) if normaliser_T is None else normaliser_T)[:, None]
    return [list(zip(tokens, values)) for tokens, values in zip(tokens_TK.tolist(), values_TK.tolist())]


def _smallest_kept(scaled_BV: torch.Tensor, top_k_B: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """The smallest logit that top-k then top-p keeps, [B].

    Looks at the largest few first: a nucleus rarely holds more than some dozen tokens, and a full sort of V is what costs."""
    vocabulary = scaled_BV.shape[-1]
    k_B = torch.where(top_k_B > 0, top_k_B.clamp(max=vocabulary), vocabulary)
    has_k_B = top_k_B > 0
    largest_k = int(k_B[has_k_B].max()) if bool(has_k_B.any()) else 0
    total_B = torch.logsumexp(scaled_BV, -1)
    width = min(vocabulary, max(128, largest_k))
    while True:
        values_BK = scaled_BV.topk(width, dim=-1).values
        rank_K = torch.arange(width)
        outside_BK = rank_K >= k_B[:, None]
        # probabilities after top-k: over the kept k for rows that have one, over everything for the others
        kept_BK = values_BK.masked_fill(outside_BK, -torch.inf)
        norm_B = torch.where(has_k_B, torch.logsumexp(kept_BK, -1), total_B)
        inclusive_BK = torch.exp(kept_BK - norm_B[:, None]).cumsum(-1, dtype=torch.float64)
        enough_B = (inclusive_BK[:, -1] >= top_p_B) | has_k_B
        if width == vocabulary or bool(enough_B.all()):
            break
        width = min(vocabulary, width * 8)
    before_BK = torch.nn.functional.pad(inclusive_BK[:, :-1], (1, 0))
    inside_BK = ~outside_BK & ((before_BK < top_p_B[:, None]) | (top_p_B[:, None] >= 1))
    last_B = (inside_BK.sum(-1) - 1).clamp(min=0)
    return values_BK.gather(-1, last_B[:, None])[:, 0]
