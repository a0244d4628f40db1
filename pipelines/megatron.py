"""The byte format of Megatron's indexed datasets: `.bin` holds token ids and nothing else, `.idx` says where documents lie.

Layout of `.idx`, little-endian (Megatron-LM, `core/datasets/indexed_dataset.py`, version 1): magic `MMIDIDX\\0\\0`, u64
version, u8 dtype code, u64 sequences, u64 document indices, i32 length of each sequence in tokens, i64 byte offset of
each sequence in `.bin`, i64 document indices (0, 1, ..., n: a document is a sequence here).

Beside them lies `.ends`: u64 cumulative ends in tokens, the same numbers as an aligned array, so that a reader finds the
document at a token by bisection in a memory map and opens a shard of any size at once.
"""

import struct
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES = {np.dtype(kind): code for kind, code in (("u1", 1), ("i1", 2), ("i2", 3), ("i4", 4), ("i8", 5), ("u2", 8))}
DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}
U16_VOCABULARY = 65_500  # Megatron's `optimal_dtype`: below it u16, else i32


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest dtype Megatron knows for a vocabulary: u16 below 65,500 tokens, else i32."""
    return np.dtype(np.uint16 if vocab_size < U16_VOCABULARY else np.int32)


def write_index(file: BinaryIO, lengths: np.ndarray, dtype: np.dtype) -> None:
    """Write `.idx` for documents of `lengths` tokens that lie one after the other in `.bin`."""
    dtype = np.dtype(dtype)
    lengths = np.asarray(lengths, dtype=np.int64)
    starts = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum(lengths[:-1] * dtype.itemsize, out=starts[1:])
    file.write(MAGIC + struct.pack("<QBQQ", VERSION, DTYPE_CODES[dtype], len(lengths), len(lengths) + 1))
    for array, kind in ((lengths, "<i4"), (starts, "<i8"), (np.arange(len(lengths) + 1), "<i8")):
        file.write(array.astype(kind).tobytes())


def read_index(data: bytes) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """(lengths in tokens i32 [n], byte offsets i64 [n], token dtype) of an `.idx` file's bytes.

    Raises:
        ValueError: it is no index of this version, or it is cut short.
    """
    header = struct.calcsize("<QBQQ")
    if data[:9] != MAGIC or len(data) < 9 + header:
        raise ValueError("not a Megatron index (bad magic)")
    version, code, sequences, documents = struct.unpack_from("<QBQQ", data, 9)
    if version != VERSION or code not in DTYPES:
        raise ValueError(f"Megatron index of version {version} with dtype code {code} is not supported")
    at = 9 + header
    if len(data) < at + 12 * sequences + 8 * documents:
        raise ValueError("the Megatron index is cut short")
    lengths = np.frombuffer(data, "<i4", sequences, at)
    return lengths, np.frombuffer(data, "<i8", sequences, at + 4 * sequences), DTYPES[code]


def write_ends(file: BinaryIO, lengths: Iterable[int]) -> None:
    """Write `.ends`: u64 cumulative ends in tokens (the layout of datatrove's `.ds.index`)."""
    file.write(np.cumsum(np.fromiter(lengths, np.int64), dtype=np.int64).astype("<u8").tobytes())
