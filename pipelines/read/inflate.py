"""Stored bytes of a crawl file, inflated piece by piece, each piece with the place in the file that it came from.

Crawl files are many compressed members end to end (gzip members, zstd or lz4 frames), usually one a record: a member's
first byte is where one can begin to read, hence what record offsets, splits and repairs are made of. Nothing here knows
what the bytes mean, and nothing holds more than `STEP` inflated bytes, however well a bomb is packed.
"""

import bz2
import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import pyarrow as pa
import zstandard

READ, STEP = 1 << 18, 1 << 20  # stored bytes read at once, inflated bytes held at once
BLOCK = 1 << 17  # inflated bytes of the largest block of a zstd frame (RFC 8878, section 3.1.1.2.4)
GZIP, ZSTD, LZ4, BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"BZh"
_SKIPPABLE = b"\x2a\x4d\x18"  # bytes 1 to 3 of a skippable frame (zstd and lz4 share them); byte 0 is 0x50 to 0x5f
_DICTIONARY = 0x5D  # byte 0 of the frame that holds the dictionary of a .warc.zst


class Broken(Exception):
    """The stored bytes cannot be inflated further; `at` is the member that breaks, `cut` whether the file just ends inside it."""

    def __init__(self, at: int, why: str, cut: bool = False):
        super().__init__(why)
        self.at, self.cut = at, cut


def codec_of(head: bytes) -> str:
    """"gzip", "zstd", "lz4", "bz2" or "" by a file's first four bytes: names lie more often than magic numbers."""
    for magic, name in ((GZIP, "gzip"), (ZSTD, "zstd"), (LZ4, "lz4"), (BZIP2, "bz2")):
        if head.startswith(magic):
            return name
    return "zstd" if head[1:4] == _SKIPPABLE and head[0] & 0xF0 == 0x50 else ""


def inflate(file: BinaryIO, start: int, codec: str) -> Iterator[tuple[int, bytes]]:
    """(offset of the member, some bytes of it) in order, from the member at `start`; last (where the data ends, b"").

    Of plain files a piece's offset is that of its first byte.

    Raises:
        Broken: a member is damaged or cut short.
    """
    return {"": _plain, "gzip": _gzip, "zstd": _frames, "lz4": _frames, "bz2": _bzip2}[codec](file, start)


def frame_extents(file: BinaryIO, start: int) -> Iterator[tuple[int, int, bytes]]:
    """(first byte, end, magic) of every zstd or lz4 frame, by hopping from block header to block header; nothing is inflated.

    Raises:
        Broken: what stands there is no frame, or the file ends inside one.
    """
    while True:
        file.seek(start)
        magic = file.read(4)
        if not magic:
            return
        if magic[1:] == _SKIPPABLE and magic[0] & 0xF0 == 0x50:
            end = start + 8 + int.from_bytes(file.read(4), "little")
        elif magic == ZSTD:
            end = _zstd_end(file, start)
        elif magic == LZ4:
            end = _lz4_end(file, start)
        else:
            raise Broken(start, "bytes that begin no frame")
        yield start, end, magic
        start = end


def _plain(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    position = start
    while True:
        if file.seekable():
            file.seek(position)  # whoever looks ahead moves the file
        piece = file.read(STEP)
        yield position, piece
        if not piece:
            return
        position += len(piece)


def _gzip(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    if file.seekable():
        file.seek(start)
    offset, data = start, b""
    while True:
        while len(data) < 2 and (more := file.read(READ)):
            data += more
        padding = len(data) - len(data.lstrip(b"\0"))  # tapes and object stores pad with zeros
        offset, data = offset + padding, data[padding:]
        if not data:
            if padding:
                continue
            yield offset, b""
            return
        if not data.startswith(GZIP):
            raise Broken(offset, "bytes that begin no gzip member")
        stream, used = zlib.decompressobj(31), 0
        while not stream.eof:
            if not data and not (data := file.read(READ)) and not stream.unconsumed_tail:
                raise Broken(offset, "the file ends inside a gzip member", cut=True)
            before = stream.copy() if used else None
            try:
                piece = stream.decompress(data, STEP)
            except zlib.error as error:
                yield offset, _up_to_break(before or zlib.decompressobj(31), data)
                raise Broken(offset, str(error)) from None
            left = stream.unused_data if stream.eof else stream.unconsumed_tail
            used, data = used + len(data) - len(left), left
            if piece:
                yield offset, piece
        offset += used


def _up_to_break(stream: Any, data: bytes) -> bytes:
    """What zlib had inflated when it met the error, of which a call that fails gives nothing: asked for byte by byte, less than `STEP`."""
    pieces = []
    with suppress(zlib.error):
        for at in range(len(data)):
            pieces.append(stream.decompress(data[at : at + 1]))
    return b"".join(pieces)


def _bzip2(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """As its tools write it, one stream or a few: its records have no offsets of their own."""
    file.seek(start)
    data = b""
    while True:
        while len(data := data.lstrip(b"\0")) < len(BZIP2) and (more := file.read(READ)):
            data += more
        if not data:
            break
        if not data.startswith(BZIP2):
            raise Broken(start, "bytes that begin no bzip2 stream")
        stream = bz2.BZ2Decompressor()
        while not stream.eof:
            if stream.needs_input and not data and not (data := file.read(READ)):
                raise Broken(start, "the file ends inside a bzip2 stream", cut=True)
            try:
                piece = stream.decompress(data, BLOCK)
            except OSError as error:
                raise Broken(start, str(error)) from None
            data = b""
            if piece:
                yield start, piece
        data = stream.unused_data
    yield start, b""


def _frames(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    dictionary = _dictionary(file)
    end = start
    try:
        for begin, end, magic in frame_extents(file, start):
            if magic in (ZSTD, LZ4):
                for piece in _frame(file, begin, end, dictionary):
                    yield begin, piece
    except Broken as broken:
        if broken.cut:  # what there is of the last frame
            with suppress(Broken):
                for piece in _frame(file, broken.at, file.seek(0, io.SEEK_END), dictionary):
                    yield broken.at, piece
        raise
    yield end, b""


def _frame(file: BinaryIO, begin: int, end: int, dictionary: zstandard.ZstdCompressionDict | None) -> Iterator[bytes]:
    """Small pieces: of one that fails the libraries give nothing."""
    file.seek(begin)
    magic = file.read(4)
    file.seek(begin)
    frame = io.BytesIO(file.read(end - begin)) if end - begin <= STEP else _Slice(file, begin, end)
    try:
        if magic == LZ4:
            reader = pa.CompressedInputStream(pa.PythonFile(frame, mode="r"), "lz4")
        else:
            reader = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 27).stream_reader(frame, read_size=READ)
        while piece := reader.read(BLOCK):
            yield piece
    except (zstandard.ZstdError, OSError) as error:
        raise Broken(begin, str(error)) from None


def _dictionary(file: BinaryIO) -> zstandard.ZstdCompressionDict | None:
    """Of a .warc.zst that begins with one (the IIPC's proposal for zstd in WARC): itself perhaps compressed."""
    file.seek(0)
    head = file.read(8)
    if len(head) < 8 or head[0] != _DICTIONARY or head[1:4] != _SKIPPABLE:
        return None
    content = file.read(min(int.from_bytes(head[4:], "little"), STEP * 16))
    if content.startswith(ZSTD):
        content = zstandard.ZstdDecompressor().decompress(content, max_output_size=STEP * 16)
    return zstandard.ZstdCompressionDict(content)


def _zstd_end(file: BinaryIO, start: int) -> int:
    """RFC 8878, section 3.1.1."""
    descriptor = _byte(file, start)
    single = descriptor >> 5 & 1
    position = start + 5 + (not single) + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
    last = 0
    while not last:
        file.seek(position)
        header = file.read(3)
        if len(header) < 3:
            raise Broken(start, "the file ends inside a zstd frame", cut=True)
        block = int.from_bytes(header, "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        position += 3 + (1 if kind == 1 else size)  # a run stores one byte
    return position + 4 * (descriptor >> 2 & 1)


def _lz4_end(file: BinaryIO, start: int) -> int:
    """The LZ4 frame format, version 1.6."""
    flags = _byte(file, start)
    position = start + 7 + 8 * (flags >> 3 & 1) + 4 * (flags & 1)
    while True:
        file.seek(position)
        header = file.read(4)
        if len(header) < 4:
            raise Broken(start, "the file ends inside an lz4 frame", cut=True)
        size = int.from_bytes(header, "little") & 0x7FFFFFFF
        position += 4
        if not size:
            return position + 4 * (flags >> 2 & 1)
        position += size + 4 * (flags >> 4 & 1)


def _byte(file: BinaryIO, start: int) -> int:
    byte = file.read(1)
    if not byte:
        raise Broken(start, "the file ends inside a frame's header", cut=True)
    return byte[0]


class _Slice(io.RawIOBase):
    """Bytes [start, end) of a file, as a file of its own, for frames too large to hold."""

    def __init__(self, file: BinaryIO, start: int, end: int):
        self._file, self._at, self._end = file, start, end

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(min(size if size >= 0 else self._end, self._end - self._at))
        self._at += len(data)
        return data
