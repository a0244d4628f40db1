"""Conversations -> fixed windows for supervised fine-tuning: assistant-only loss, several documents a window, none sees another.

Lengths are known once, so the order of every epoch is a stateless function of (seed, epoch): resume needs the step number alone.
Packing is best-fit over a seeded permutation (documents of a window differ from epoch to epoch, padding stays small); documents longer than the
window are left out and counted, never cut: half a solution teaches not to finish.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.packing import pack_best_fit

__all__ = ["ConversationWindows", "Window"]

@dataclass(frozen=True)
class Window:
    """A batch of windows. B windows of T positions; labels are already shifted (labels[t] is the token after input_ids[t])."""

    input_ids_BT: Tensor  # int64, 0 where padded
    labels_BT: Tensor  # int64
    loss_mask_BT: Tensor  # float32, 1 where the label is an assistant's token
    seq_idx_BT: Tensor  # int32, number of the document inside its window; padding has a number of its own
    document_ids: list[list[str]]  # per window


class ConversationWindows:
    """Encoded conversations and their windows per epoch.

    encoded   (id, token ids, loss mask of the same length) per conversation
    length    T, positions a window
    """

    def __init__(self, encoded: Iterable[tuple[str, list[int], list[int]]], *, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.too_long = 0
        ids, tokens, masks = [], [], []
        for name, token_ids, mask in encoded:
            if len(token_ids) - 1 > length:
                self.too_long += 1
            elif len(token_ids) > 1 and any(mask[1:]):
                ids.append(name)
                tokens.append(np.asarray(token_ids, np.int32))
                masks.append(np.asarray(mask, np.bool_))
        if not ids:
            raise UserError(f"no conversation with an assistant's turn fits a window of {length} tokens ({self.too_long} are longer)")
        self.ids, self.tokens, self.masks = ids, tokens, masks
        self.lengths = np.array([len(t) - 1 for t in tokens])  # the last token is only ever a label
        self._epochs: dict[int, list[list[int]]] = {}
        self._starts = [0]  # windows before epoch e

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._epoch(0)) // self.batch_size)

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._epochs:
            random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            shuffled = random.permutation(len(self.ids))
            packed = pack_best_fit(self.lengths[shuffled], self.length)
            windows = [[int(shuffled[document]) for document, _, _ in window] for window in packed]
            order = random.permutation(len(windows))
            self._epochs = {e: w for e, w in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = [windows[i] for i in order]
        return self._epochs[epoch]

    def _window(self, index: int) -> list[int]:
        epoch = 0
        while True:
            while len(self._starts) <= epoch + 1:
                self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
            if index < self._starts[epoch + 1]:
                return self._epoch(epoch)[index - self._starts[epoch]]
            epoch += 1

    def batch(self, step: int) -> Window:
        """The windows of one step: a pure function of (conversations, seed, step)."""
        B, T = self.batch_size, self.length
        input_ids = np.zeros((B, T), np.int64)
        labels = np.zeros((B, T), np.int64)
        loss_mask = np.zeros((B, T), np.float32)
        seq_idx = np.zeros((B, T), np.int32)
        names: list[list[str]] = []
        for row in range(B):
            members, at = self._window(step * B + row), 0
            for number, document in enumerate(members):
                tokens, mask = self.tokens[document], self.masks[document]
                span = slice(at, at + len(tokens) - 1)
                input_ids[row, span], labels[row, span] = tokens[:-1], tokens[1:]
                loss_mask[row, span], seq_idx[row, span] = mask[1:], number
                at = span.stop
            seq_idx[row, at:] = len(members)
            names.append([self.ids[d] for d in members])
        return Window(*(torch.from_numpy(a) for a in (input_ids, labels, loss_mask, seq_idx)), names)
