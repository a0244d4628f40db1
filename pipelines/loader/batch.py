"""A batch, and how it is put together from pieces of documents."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kernels.packing import gather
from pipelines.shardset import Shard

# Columns of Batch.spans.
ROW, POSITION, SPAN_LENGTH, SOURCE, SPAN_SHARD, SPAN_DOCUMENT, SPAN_OFFSET = range(7)
_NO_MASK = np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step. B sequences of T tokens; all arrays are numpy and own their memory.

    `seq_idx` numbers the documents within a row from 0; padding after the last document has the next number. Padding has
    token </s>, label 0 and loss_mask 0. `cu_seqlens` are the boundaries of all documents (and paddings) of the flattened batch.
    """

    input_ids: np.ndarray
    """int64 [B, T]"""
    labels: np.ndarray
    """int64 [B, T], the next token of the same document"""
    loss_mask: np.ndarray
    """uint8 [B, T], 0 at a document's last token, at padding, and before tokens that are not to be learnt (chat)"""
    seq_idx: np.ndarray
    """int32 [B, T]"""
    position_ids: np.ndarray
    """int32 [B, T], counted from the beginning of the piece of the document"""
    cu_seqlens: np.ndarray
    """int32 [pieces + 1]"""
    document_ids: np.ndarray
    """int64 [pieces], which document lies between two boundaries: its number in the shard set (`TokenStream.names`); -1 is padding"""
    spans: np.ndarray
    """int64 [documents' pieces, 7]: ROW, POSITION, SPAN_LENGTH, SOURCE, SPAN_SHARD, SPAN_DOCUMENT, SPAN_OFFSET; padding has no span"""

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.spans[:, SPAN_LENGTH].sum())


@dataclass(frozen=True)
class Span:
    """A part of a document in a sequence; offsets and lengths in tokens."""

    source: str
    document_id: str
    doc_offset: int
    length: int
    position: int
    shard: str
    document: int
    """the document's index in the shard"""


def assemble(spans: np.ndarray, size: int, length: int, eos: int, shard_of: Callable[[int, int], Shard], number_of: Callable[..., np.ndarray]) -> Batch:
    """Copy the tokens under `spans` (sorted by row and position) into a batch of `size` rows.

    Args:
        shard_of: (source, shard) -> the shard. number_of: (sources, shards, documents) -> numbers in the shard set.
    """
    ids, labels = np.empty((2, size, length), np.int64)
    mask = np.empty((size, length), np.uint8)
    seq_idx, positions = np.empty((2, size, length), np.int32)
    flat = [array.reshape(-1) for array in (ids, labels, mask, seq_idx, positions)]
    begins = spans[:, ROW] * length + spans[:, POSITION]
    firsts = np.searchsorted(spans[:, ROW], np.arange(size + 1))
    numbers = np.arange(len(spans)) - firsts[spans[:, ROW]]
    # A shard at a time: all its pieces are copied from the memory map at once.
    owner = spans[:, SOURCE] << 32 | spans[:, SPAN_SHARD]
    for key in np.unique(owner).tolist():
        chosen = np.flatnonzero(owner == key)
        shard = shard_of(key >> 32, key & 0xFFFFFFFF)
        learnt = _NO_MASK if shard.mask is None else shard.mask
        pieces = spans[chosen][:, [SPAN_DOCUMENT, SPAN_OFFSET, SPAN_LENGTH]]
        gather(shard.tokens, shard.ends, learnt, pieces, numbers[chosen], begins[chosen], *flat)
    documents = number_of(spans[:, SOURCE], spans[:, SPAN_SHARD], spans[:, SPAN_DOCUMENT])
    ends = np.append(begins + spans[:, SPAN_LENGTH], 0)[firsts[1:] - 1] - np.arange(size) * length
    short = np.flatnonzero((ends < length) | (firsts[1:] == firsts[:-1]))
    if len(short):
        ends[firsts[1:] == firsts[:-1]] = 0
        for row in short.tolist():
            tail = slice(int(ends[row]), None)
            ids[row, tail], labels[row, tail], mask[row, tail] = eos, 0, 0
            seq_idx[row, tail] = firsts[row + 1] - firsts[row]
            positions[row, tail] = np.arange(length - int(ends[row]))
        begins = np.concatenate([begins, short * length + ends[short]])
        order = np.argsort(begins, kind="stable")
        begins, documents = begins[order], np.concatenate([documents, np.full(len(short), -1)])[order]
    edges = np.append(begins, size * length).astype(np.int32)
    return Batch(ids, labels, mask, seq_idx, positions, edges, documents, spans)
