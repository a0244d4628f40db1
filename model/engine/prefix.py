"""What the model remembers of earlier prompts, so that a prompt which begins like one of them is not read again.

A tree of blocks of BLOCK tokens, each known by a digest of everything up to its end. A block holds its keys and values; where a prompt pass paused
at a block's end it also holds the Mamba states there, and reading can resume after such a block. States are large and blocks are many, so they are
kept where they pay: at the ends of chunks, at the last block of a prompt (the next turn of a conversation resumes there), and where a second
prompt was seen to part from a first (Marconi, Pan et al. 2024). The least recently used blocks leave when the bytes are full, leaves before roots.
"""
from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from model.cache import Cache, KeyValues, MambaState

BLOCK = 64  # tokens


@dataclass
class _Block:
    keys_values: list[tuple[Tensor, Tensor]]  # an attention layer each: [J, BLOCK, D]
    states: list[tuple[Tensor, Tensor]] | None = field(default=None)  # a Mamba layer each: conv inputs and state at the block's end

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for pair in (*self.keys_values, *(self.states or ())) for t in pair)


class PrefixStore:
    """Blocks of one set of weights, `capacity` bytes at most."""

    def __init__(self, cache: Cache, capacity: int) -> None:
        self.cache, self.capacity, self.nbytes = cache, capacity, 0
        self.blocks: OrderedDict[bytes, _Block] = OrderedDict()  # least recently used first
        self.reused = self.read = 0  # prompt tokens

    def clear(self) -> None:
        """The weights changed."""
        self.blocks.clear()
        self.nbytes = 0

    def load(self, ids: list[int], slot: int) -> tuple[int, int]:
        """Fill an empty slot with the longest known beginning of a prompt. Returns (tokens loaded, tokens known without a state to resume from); the
        last token is never loaded, for its hidden state is what writing starts from."""
        known, resumable = [], 0
        for key in _keys(ids, (len(ids) - 1) // BLOCK):
            if key not in self.blocks:
                break
            known.append(key)
            if self.blocks[key].states is not None:
                resumable = len(known)
        for key in reversed(known):
            self.blocks.move_to_end(key)  # roots last: they outlive their leaves
        used = [self.blocks[key] for key in known[:resumable]]
        if used:
            for position, state in enumerate(self._layers(KeyValues)):
                for i, block in enumerate(used):
                    where = slice(i * BLOCK, (i + 1) * BLOCK)
                    state.keys[slot, :, where], state.values[slot, :, where] = block.keys_values[position]
            for state, (conv, ssm) in zip(self._layers(MambaState), used[-1].states):
                state.conv[slot], state.ssm[slot] = conv, ssm
        loaded = resumable * BLOCK
        self.cache.lengths[slot] = loaded
        self.reused += loaded
        self.read += len(ids) - loaded
        return loaded, len(known) * BLOCK

    def save(self, ids: list[int], slot: int, end: int) -> None:
        """Remember a slot that has taken in exactly ids[:end]; `end` is a multiple of BLOCK."""
        keys = list(_keys(ids, end // BLOCK))
        for i, key in enumerate(keys):
            if key not in self.blocks:
                where = slice(i * BLOCK, (i + 1) * BLOCK)
                self._put(key, _Block([(s.keys[slot, :, where].clone(), s.values[slot, :, where].clone()) for s in self._layers(KeyValues)]))
        last = self.blocks[keys[-1]]
        if last.states is None:
            last.states = [(s.conv[slot].clone(), s.ssm[slot].clone()) for s in self._layers(MambaState)]
            self.nbytes += sum(t.nbytes for pair in last.states for t in pair)
        for key in reversed(keys):
            self.blocks.move_to_end(key)
        while self.nbytes > self.capacity:
            self.nbytes -= self.blocks.popitem(last=False)[1].nbytes

    def _put(self, key: bytes, block: _Block) -> None:
        self.blocks[key] = block
        self.nbytes += block.nbytes

    def _layers(self, kind: type) -> list:
        return [state for state in self.cache.layers if isinstance(state, kind)]


def _keys(ids: list[int], count: int):
    """The digests of the first `count` blocks, each over all tokens up to its end."""
    tokens, running = np.asarray(ids[:count * BLOCK], dtype=np.int64), hashlib.blake2b(digest_size=16)
    for i in range(count):
        running.update(tokens[i * BLOCK:(i + 1) * BLOCK].tobytes())
        yield running.copy().digest()
