"""Where a large file can be cut so that its parts, read alone, give exactly the rows of the whole.

A page may hold anything, an archive too, so "the next thing that looks like a record" is no boundary: text inside a record
would become records of their own, with whatever URLs its author liked. Plain archives are therefore walked once, header by
header, as they will be read; zstd and lz4 files from frame to frame. Gzip does not tell where a member ends before it is
inflated; there a candidate counts when the members from it on form a chain longer than anything can lie verbatim inside
another member (one stored block of deflate), or one that reaches the file's end.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from pipelines.read.framing import Grammar, read_archive
from pipelines.read.inflate import Broken, frame_extents, inflate

STORED_BLOCK = 65_535  # bytes: the length field of a stored block has 16 bits (RFC 1951, section 3.2.4)
_MAGIC = b"\x1f\x8b\x08"
_SCAN = 1 << 16  # bytes searched at once: of a remote file each is paid for


def evenly(size: int, part_bytes: int) -> list[int]:
    """Nominal edges 0, ..., size of parts of at most `part_bytes`: for formats whose reader finds the boundary behind an edge."""
    count = -(-size // part_bytes)
    return [size * index // count for index in range(count + 1)]


def walked(file: BinaryIO, size: int, codec: str, grammar: Grammar, part_bytes: int) -> list[int]:
    """Exact edges of a plain, zstd or lz4 archive: records' first bytes, parts of at least `part_bytes`."""
    edges = [0]
    for start in _frames(file) if codec else _records(file, grammar):
        if start - edges[-1] >= part_bytes and (not codec or _begins_frame(file, start, codec, grammar.begins)):
            edges.append(start)
    return [*edges, size]


def next_member(file: BinaryIO, position: int, size: int, begins: re.Pattern[bytes], proven: bool = False) -> int:
    """The first byte at or after `position` where a gzip member begins that begins with a record, else `size`.

    `proven` asks for a member that cannot be a part of another one's content.
    """
    if position <= 0:
        return 0
    while position < size:
        file.seek(position)
        block = file.read(_SCAN)
        if not block:
            return size
        at = block.find(_MAGIC)
        while at >= 0:
            file.seek(position + at)
            if _begins(file.read(1 << 15), begins) and (not proven or _chains(file, position + at)):
                return position + at
            at = block.find(_MAGIC, at + 1)
        position += max(len(block) - len(_MAGIC) + 1, 1)  # a magic may straddle two blocks
    return size


def resume(file: BinaryIO, broken_at: int, size: int, codec: str, begins: re.Pattern[bytes]) -> int:
    """The first member behind one that breaks at which reading can go on, else `size`."""
    if codec == "gzip":
        return next_member(file, broken_at + 1, size, begins)
    if codec in ("zstd", "lz4"):
        return next((start for start in _frames(file, broken_at) if start > broken_at), size)
    return size


def _begins(head: bytes, begins: re.Pattern[bytes]) -> bool:
    try:
        return begins.match(zlib.decompressobj(31).decompress(head, 1 << 14).lstrip(b"\r\n")) is not None
    except zlib.error:
        return False


def _chains(file: BinaryIO, start: int) -> bool:
    try:
        for member, _ in inflate(file, start, "gzip"):
            if member - start > STORED_BLOCK:
                break
        return True
    except Broken as broken:
        return broken.cut or broken.at - start > STORED_BLOCK


def _records(file: BinaryIO, grammar: Grammar) -> Iterator[int]:
    file.seek(0)
    every = Grammar(grammar.begins, grammar.ends, grammar.head, lambda head, content, record, limit: record)
    for record in read_archive(file, "", "", every, 0, None, 0, int, Counter()):
        if not record.reason:
            yield record.offset


def _frames(file: BinaryIO, begin: int = 0) -> Iterator[int]:
    try:
        for start, _, _ in frame_extents(file, begin):
            yield start
    except Broken:
        return


def _begins_frame(file: BinaryIO, start: int, codec: str, begins: re.Pattern[bytes]) -> bool:
    try:
        return begins.match(next(inflate(file, start, codec))[1].lstrip(b"\r\n")) is not None
    except Broken:
        return False
