"""Everything a model remembers of running sequences, one slot each.

A Mamba layer keeps the last conv_kernel - 1 inputs of its convolution and one float32 state, both of fixed size; an attention layer keeps keys and
values for every position. Buffers are allocated once, for `slots` sequences of at most `max_length` tokens, and updated in place.

Tokens may be appended tentatively (speculative decoding): `Cache.accept` then keeps the first few of each row. Keys and values past a length are
never read, so only the Mamba layers need to remember more: their convolution's inputs and the state after each position.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class MambaState:
    """conv [slots, W-1, conv_dim] (inputs before the convolution) and ssm [slots, H, P, N] float32."""

    def __init__(self, config, slots: int, dtype: torch.dtype) -> None:
        self.conv = torch.zeros(slots, config.conv_kernel - 1, config.conv_dim, dtype=dtype)
        self.ssm = torch.zeros(slots, config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size)
        self.tentative: tuple[Tensor, Tensor] | None = None  # inputs [B, W-1+T, conv_dim] and states [B, T, H, P, N] of tokens not yet accepted


class KeyValues:
    """keys and values [slots, KV heads, max_length, head_dim]."""

    def __init__(self, config, slots: int, max_length: int, dtype: torch.dtype) -> None:
        shape = slots, config.num_key_value_heads, max_length, config.head_dim
        self.keys, self.values = _unwritten_zeros(shape, dtype), _unwritten_zeros(shape, dtype)


def _unwritten_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that occupy memory only where something is written later: numpy asks the system for blank pages, torch would fill them now."""
    bits = np.zeros(shape, {2: np.uint16, 4: np.float32, 8: np.float64}[dtype.itemsize])
    return torch.from_numpy(bits).view(dtype)


class Cache:
    """State of up to `slots` sequences. `cache.lengths` [slots] counts the tokens each has taken in.

    Made from a model (its compute dtype decides that of keys, values and conv inputs) or from a config (float32 unless `dtype` says otherwise).
    """

    def __init__(self, lm_or_config, slots: int, max_length: int, dtype: torch.dtype | None = None) -> None:
        if slots < 1 or max_length < 1:
            raise ValueError(f"a cache needs at least one slot and one position, not slots={slots}, max_length={max_length}")
        config = getattr(lm_or_config, "config", lm_or_config)
        dtype = dtype or getattr(lm_or_config, "compute_dtype", torch.float32)
        self.slots, self.max_length = slots, max_length
        self.lengths = torch.zeros(slots, dtype=torch.long)
        self.pending: Step | None = None  # of a tentative call
        self.layers: list[MambaState | KeyValues | None] = [
            MambaState(config, slots, dtype) if kind == "M" else KeyValues(config, slots, max_length, dtype) if kind == "*" else None
            for kind in config.pattern]

    def reset(self, slots: Sequence[int] | Tensor | None = None) -> None:
        """Forget the given slots (all of them by default). Keys and values past a slot's length are never read, so they stay as they are."""
        where = slice(None) if slots is None else torch.as_tensor(slots, dtype=torch.long)
        self.lengths[where] = 0
        for state in self.layers:
            if isinstance(state, MambaState):
                state.conv[where] = 0
                state.ssm[where] = 0

    def accept(self, counts: Sequence[int] | Tensor) -> None:
        """Keep the first counts[b] >= 1 tokens of each row of the tentative call before, forget the rest."""
        step, counts_B = self.pending, torch.as_tensor(counts)
        assert step is not None and bool((counts_B >= 1).all()) and bool((counts_B <= step.new_B).all())
        every_B = torch.arange(len(counts_B))
        for state in self.layers:
            if isinstance(state, MambaState):
                inputs, states = state.tentative
                columns_BW = counts_B[:, None] + torch.arange(state.conv.shape[1])
                state.conv[step.rows] = inputs[every_B[:, None], columns_BW]
                state.ssm[step.rows] = states[every_B, counts_B - 1]
                state.tentative = None
        self.lengths[step.rows] = step.start_B + counts_B
        self.pending = None

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Slots `target` become copies of slots `source`, pair by pair; no slot may be in both."""
        if not source:
            return
        reach = int(self.lengths[source].max())
        self.lengths[target] = self.lengths[source]
        for state in self.layers:
            if isinstance(state, MambaState):
                state.conv[target] = state.conv[source]
                state.ssm[target] = state.ssm[source]
            elif isinstance(state, KeyValues):
                state.keys[target, :, :reach] = state.keys[source, :, :reach]
                state.values[target, :, :reach] = state.values[source, :, :reach]

    def bytes_of(self, tokens: int) -> int:
        """Bytes a sequence of so many tokens occupies: keys and values for each, Mamba states once."""
        total = 0
        for state in self.layers:
            if isinstance(state, MambaState):
                total += state.conv[0].nbytes + state.ssm[0].nbytes
            elif isinstance(state, KeyValues):
                total += 2 * tokens * state.keys[0, :, 0].nbytes
        return total

    def nbytes(self) -> int:
        """Bytes of all buffers."""
        tensors = [t for state in self.layers if state is not None for t in vars(state).values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)


class Step:
    """Where one call appends to a cache: rows, their lengths so far, and how many of the T new tokens are real in each.

    `rows` is a slice where the slots are consecutive, so that states are updated in place, and an index tensor otherwise.
    """

    def __init__(self, cache: Cache, batch: int, length: int, slots, lengths, tentative: bool = False) -> None:
        assert cache.pending is None, "a tentative call must be accepted before the next one"
        self.tentative = tentative
        chosen = list(range(batch)) if slots is None else [int(s) for s in slots]
        if len(chosen) != batch or len(set(chosen)) != batch or min(chosen) < 0 or max(chosen) >= cache.slots:
            raise ValueError(f"slots must be {batch} different numbers below {cache.slots}, not {chosen}")
        consecutive = chosen == list(range(chosen[0], chosen[0] + batch))
        self.index_B = torch.tensor(chosen)
        self.rows = slice(chosen[0], chosen[0] + batch) if consecutive else self.index_B
        self.in_place = consecutive
        self.length = length
        self.start_B = cache.lengths[self.rows]
        new = [length] * batch if lengths is None else [int(n) for n in lengths]
        if len(new) != batch or min(new) < 0 or max(new) > length:
            raise ValueError(f"lengths must be {batch} numbers from 0 to {length}, not {new}")
        self.ragged = min(new) < length
        self.new_B = torch.tensor(new)
        self.end_B = self.start_B + self.new_B
        self.reach = int(self.end_B.max())  # positions any row has after this call
        if self.reach > cache.max_length:
            raise ValueError(f"a sequence of {self.reach} tokens does not fit the cache's max_length {cache.max_length}")
        self.fresh = not bool(self.start_B.any())
        if self.ragged:
            self.valid_BT = torch.arange(length) < self.new_B[:, None]
        self.active_B = self.new_B > 0 if self.ragged else None  # rows with something new
        self.mask = None  # attention mask, made by the first attention layer of the call

    def close(self, cache: Cache) -> None:
        if self.tentative:
            cache.pending = self
        else:
            cache.lengths[self.rows] = self.end_B
