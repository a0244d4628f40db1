"""Everything a model remembers of running sequences, one slot each.

A Mamba layer keeps the last conv_kernel - 1 inputs of its convolution and one float32 state, both of fixed size; an attention layer keeps keys and
values for every position. Buffers are allocated once, for `slots` sequences of at most `max_length` tokens, and updated in place; layers of a kind
share one buffer, which is how the compiled step (`model.packed`) gets hold of them all.

Tokens may be appended tentatively (speculative decoding): `Cache.accept` then keeps the first few of each row. Keys and values past a length are
never read, so only the Mamba layers need to remember more: their convolution's inputs and the state after each position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kernels.lanes import flat


@dataclass
class MambaState:
    """A layer's conv [slots, W-1, conv_dim] (inputs before the convolution) and ssm [slots, H, P, N] float32; `index` counts Mamba layers."""

    index: int
    conv: Tensor
    ssm: Tensor


@dataclass
class KeyValues:
    """A layer's keys and values [slots, KV heads, max_length, head_dim]."""

    keys: Tensor
    values: Tensor


@dataclass
class Pending:
    """B rows of `length` tokens not yet accepted: every Mamba layer's inputs [layers, B, W-1+T, conv_dim] and states [layers, B, T, H, P, N]."""

    slots_B: Tensor
    length: int
    inputs: Tensor
    states: Tensor


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
        self.pending: Pending | None = None  # of a tentative call
        mamba, attention = config.pattern.count("M"), config.pattern.count("*")
        self.conv = torch.zeros(mamba, slots, config.conv_kernel - 1, config.conv_dim, dtype=dtype)
        self.ssm = torch.zeros(mamba, slots, config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size)
        self.room = -(-max_length // 16) * 16  # whole vectors: the last may be read beyond what was written
        shape = attention, slots, config.num_key_value_heads, self.room, config.head_dim
        self.keys, self.values = _unwritten_zeros(shape, dtype), _unwritten_zeros(shape, dtype)
        states, pairs = map(MambaState, range(mamba), self.conv, self.ssm), map(KeyValues, self.keys, self.values)
        self.layers: list[MambaState | KeyValues | None] = [next(states) if kind == "M" else next(pairs) if kind == "*" else None for kind in config.pattern]

    def reset(self, slots: Sequence[int] | Tensor | None = None) -> None:
        """Forget the given slots (all of them by default). Keys and values past a slot's length are never read, so they stay as they are."""
        where = slice(None) if slots is None else torch.as_tensor(slots, dtype=torch.long)
        self.lengths[where] = 0
        for state in self.layers:
            if isinstance(state, MambaState):
                state.conv[where] = 0
                state.ssm[where] = 0

    def claim(self, batch: int, length: int, slots: Sequence[int] | Tensor | None, lengths: Sequence[int] | Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """(slots, new tokens) of the rows of a call, int64 [batch] each. Raises ValueError for what does not fit."""
        assert self.pending is None, "a tentative call must be accepted before the next one"
        slots_B = np.arange(batch) if slots is None else np.asarray(slots, np.int64)
        chosen = range(batch) if slots is None else slots_B.tolist()
        if len(chosen) != batch or len(set(chosen)) != batch or min(chosen) < 0 or max(chosen) >= self.slots:
            raise ValueError(f"slots must be {batch} different numbers below {self.slots}, not {[*chosen]}")
        new_B = np.full(batch, length) if lengths is None else np.asarray(lengths, np.int64)
        if lengths is not None and (len(new_B) != batch or new_B.min() < 0 or new_B.max() > length):
            raise ValueError(f"lengths must be {batch} numbers from 0 to {length}, not {new_B.tolist()}")
        reach = int((self.lengths.numpy()[slots_B] + new_B).max())
        if reach > self.max_length:
            raise ValueError(f"a sequence of {reach} tokens does not fit the cache's max_length {self.max_length}")
        return slots_B, new_B

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """conv, ssm, keys and values as the compiled step takes them."""
        return tuple(flat(t) for t in (self.conv, self.ssm, self.keys, self.values))

    def hold(self, slots_B: np.ndarray, length: int) -> Pending:
        """Room for what a tentative call of `length` tokens a row leaves behind."""
        layers, _, taps, channels = self.conv.shape
        inputs = self.conv.new_empty(layers, len(slots_B), taps + length, channels)
        states = self.ssm.new_empty(layers, len(slots_B), length, *self.ssm.shape[2:])
        self.pending = Pending(torch.from_numpy(slots_B), length, inputs, states)
        return self.pending

    def accept(self, counts: Sequence[int] | Tensor) -> None:
        """Keep the first counts[b] >= 1 tokens of each row of the tentative call before, forget the rest."""
        pending, counts_B = self.pending, torch.as_tensor(counts)
        assert pending is not None and bool((counts_B >= 1).all()) and bool((counts_B <= pending.length).all())
        every_B = torch.arange(len(counts_B))
        self.conv[:, pending.slots_B] = pending.inputs[:, every_B[:, None], counts_B[:, None] + torch.arange(self.conv.shape[2])]
        self.ssm[:, pending.slots_B] = pending.states[:, every_B, counts_B - 1]
        self.lengths[pending.slots_B] += counts_B
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
        return sum(t.nbytes for t in (self.conv, self.ssm, self.keys, self.values))


class Step:
    """Where one call of the torch modules appends to a cache: rows, their lengths so far, and how many of the T new tokens are real in each.

    `rows` is a slice where the slots are consecutive, so that states are updated in place, and an index tensor otherwise.
    """

    def __init__(self, cache: Cache, batch: int, length: int, slots, lengths, tentative: bool = False) -> None:
        slots_B, new_B = cache.claim(batch, length, slots, lengths)
        self.pending = cache.hold(slots_B, length) if tentative else None
        self.index_B, self.new_B, self.length = torch.from_numpy(slots_B), torch.from_numpy(new_B), length
        self.in_place = bool((np.diff(slots_B) == 1).all())
        self.rows = slice(int(slots_B[0]), int(slots_B[0]) + batch) if self.in_place else self.index_B
        self.start_B = cache.lengths[self.rows]
        self.ragged = int(new_B.min()) < length
        self.end_B = self.start_B + self.new_B
        self.reach = int(self.end_B.max())  # positions any row has after this call
        self.fresh = not bool(self.start_B.any())
        if self.ragged:
            self.valid_BT = torch.arange(length) < self.new_B[:, None]
        self.active_B = self.new_B > 0 if self.ragged else None  # rows with something new
        self.mask = None  # attention mask, made by the first attention layer of the call

    def close(self, cache: Cache) -> None:
        if self.pending is None:
            cache.lengths[self.rows] = self.end_B
