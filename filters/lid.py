"""A compressed fastText classifier (.ftz) as arrays: what its file holds, and its answers for a batch of texts.

`kernels.ngram_rows` adds up a model's rows several times as fast as fastText does, to the same bits. It takes the form that lid.176.ftz has: 16 dimensions, a
quantized input matrix (Joulin et al. 2016, "FastText.zip"), pruned buckets, single words and n-grams of 2 to 4 letters, hierarchical softmax. The layout is
that of fastText's `saveModel`, version 12.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels.ngram_rows import DIMENSIONS, LONGEST, SHORTEST, Rows, add_rows, hash_bytes, likeliest

_FORM = (793712314, 12)  # magic number, version
_HIERARCHICAL, _SUPERVISED = 1, 3
_CENTROIDS = 256  # of a quantizer
_UNMADE = 10**15  # the count of a node that is not made yet


class _File:
    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def array(self, kind: type, count: int) -> np.ndarray:
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at += values.nbytes
        return values

    def string(self) -> bytes:
        end = self._data.index(b"\0", self._at)
        text, self._at = self._data[self._at : end], end + 1
        return text


@dataclass(frozen=True)
class Classifier:
    """`labels` [L] without their prefix, the most frequent first; `rows`, `output`, `left` and `right` are what the kernels take."""

    labels: list[str]
    rows: Rows
    output: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "Classifier":
        """Raises ValueError for a file that is no model of this form."""
        file = _File(path.read_bytes())
        form = file.take("ii")
        dimensions, *_, grams, loss, model, buckets, shortest, longest, _ = file.take("12i")
        file.take("d")
        if form != _FORM or (dimensions, grams, loss, model, shortest, longest) != (DIMENSIONS, 1, _HIERARCHICAL, _SUPERVISED, SHORTEST, LONGEST):
            raise ValueError(f"{path}: no fastText classifier of the form of lid.176.ftz")
        size, words, _ = file.take("3i")
        _, pruned = file.take("2q")
        entries = [(file.string(), *file.take("qb")) for _ in range(size)]
        kept = file.array(np.int32, 2 * pruned).reshape(pruned, 2)  # (bucket, its row after the words)
        matrix = _quantized(file)
        _, height, width = file.take("?2q")
        output = file.array(np.float32, height * width).reshape(height, width)
        kept = kept[np.argsort(kept[:, 0])]
        matrix = np.concatenate((matrix[:words], matrix[words + kept[:, 1]]))
        known = {word: row for row, (word, _, _) in enumerate(entries[:words])}
        rows = Rows(matrix, *_table(known), known[b"</s>"], words, *_bitmap(kept[:, 0], buckets), buckets)
        names = [name.decode().removeprefix("__label__") for name, _, _ in entries[words:]]
        return cls(names, rows, output, *_tree([count for _, count, _ in entries[words:]]))

    def predict(self, codes: np.ndarray, bits: np.ndarray, rows: np.ndarray, most: int) -> tuple[list[str], np.ndarray]:
        """(label, probability float32) of each text's first `most` characters, ("", 0) without letters.

        codes, bits: uint32 [C] (`kernels.characters`); rows: int64 [R+1].
        """
        texts = len(rows) - 1
        sums, counts = np.zeros((texts, DIMENSIONS), np.float32), np.empty(texts, np.int64)
        add_rows(codes, bits, rows, most, *self.rows, sums, counts)
        best, scores = np.empty(texts, np.int64), np.empty(texts, np.float32)
        likeliest(sums, counts, self.output, self.left, self.right, len(self.labels), best, scores)
        return [self.labels[label] if label >= 0 else "" for label in best], scores


def _quantized(file: _File) -> np.ndarray:
    """float32 [rows, D]: each row a norm times its parts' centroids."""
    _, by_norm, height, _, size = file.take("??2qi")
    codes = file.array(np.uint8, size).reshape(height, -1)
    dimensions, parts, width, _ = file.take("4i")
    centroids = file.array(np.float32, dimensions * _CENTROIDS).reshape(parts, _CENTROIDS, width)
    matrix = centroids[np.arange(parts), codes].reshape(height, dimensions)
    if not by_norm:
        return matrix
    norms = file.array(np.uint8, height)
    file.take("4i")
    return matrix * file.array(np.float32, _CENTROIDS)[norms][:, None]


def _table(known: dict[bytes, int]) -> tuple[np.ndarray, np.ndarray]:
    """Words' hashes and rows in open addressing, half of the slots free."""
    slots = 1 << (2 * len(known)).bit_length()
    hashes, rows = np.zeros(slots, np.uint64), np.zeros(slots, np.int64)
    for word, row in known.items():
        value = hash_bytes(np.frombuffer(word, np.uint8))
        slot = value >> 20 & (slots - 1)
        while hashes[slot]:
            slot = slot + 1 & (slots - 1)
        hashes[slot], rows[slot] = value, row
    return hashes, rows


def _bitmap(kept: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """One bit a bucket (uint64 [blocks]), and how many are set in earlier blocks (int64 [blocks])."""
    bits = np.zeros((-(-buckets // 64), 64), np.uint8)
    bits.reshape(-1)[kept] = 1
    before = np.cumsum(bits.sum(1, dtype=np.int64)) - bits.sum(1)
    return np.packbits(bits, bitorder="little").view(np.uint64), before


def _tree(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Children of a Huffman tree's nodes by fastText's order of merging: leaves are the labels (by falling count), the root is last."""
    leaves = len(counts)
    totals = [*counts, *[_UNMADE] * (leaves - 1)]
    children = np.full((2, 2 * leaves - 1), -1, np.int64)
    leaf, made = leaves - 1, leaves
    for node in range(leaves, 2 * leaves - 1):
        for side in range(2):
            if leaf >= 0 and totals[leaf] < totals[made]:
                children[side, node] = leaf
                leaf -= 1
            else:
                children[side, node] = made
                made += 1
        totals[node] = totals[children[0, node]] + totals[children[1, node]]
    return children[0], children[1]
