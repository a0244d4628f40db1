"""HTTP payloads: chunked transfer and content encodings undone, never more than a limit inflated.

Servers lie: a body that claims gzip or chunks and has none is passed on as it is (browsers do the same); one that breaks
in the middle gives what could be read. Both are told apart from bombs, which stop at the limit.
"""

import re
import zlib

import brotli
import pyarrow as pa

_CHUNK_SIZE = re.compile(rb"\s*([0-9a-fA-F]{1,8})[^\r\n]{0,256}\r?\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # the escape begins Japanese text in ISO 2022
_STEP = 1 << 16
MOST_ENCODINGS = 4  # a stream that inflates to itself would otherwise be inflated as often as a header has room for


class TooLarge(ValueError):
    """The payload inflates past the limit."""


def decode_payload(body: bytes, transfer_encoding: str, content_encoding: str, limit: int) -> bytes:
    """Undo the encodings in the order in which HTTP applied them.

    Raises:
        TooLarge: more than `limit` bytes come out, or more encodings are named than any server applies.
    """
    if "chunked" in transfer_encoding.lower():
        body = unchunk(body)
    encodings = [name.strip().lower() for name in content_encoding.split(",", MOST_ENCODINGS) if name.strip()]
    if len(encodings) > MOST_ENCODINGS:
        raise TooLarge(f"more than {MOST_ENCODINGS} content encodings")
    for encoding in reversed(encodings):
        body = inflate(body, encoding, limit)
    if len(body) > limit:
        raise TooLarge(f"more than {limit} bytes")
    return body


def unchunk(body: bytes) -> bytes:
    """Join HTTP chunks; bytes that do not begin with a chunk size come back unchanged."""
    pieces, position = [], 0
    while match := _CHUNK_SIZE.match(body, position):
        size = int(match.group(1), 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(body[match.end() : match.end() + size])
        position = match.end() + size
        if body[position : position + 2] == b"\r\n":
            position += 2
    return b"".join(pieces) if pieces else body


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo one content encoding; an unknown one, or bytes that are not of it, come back unchanged.

    Raises:
        TooLarge: more than `limit` bytes come out.
    """
    if encoding in ("gzip", "x-gzip"):
        return _zlib(body, 31, limit) if body[:2] == b"\x1f\x8b" else body
    if encoding == "deflate":
        return _zlib(body, 15, limit) or _zlib(body, -15, limit) or _text(body)
    if encoding == "br":
        return _brotli(body, limit) or _text(body)
    if encoding == "zstd":
        return _zstd(body, limit) if body[:4] == b"\x28\xb5\x2f\xfd" else body
    return body


def _text(body: bytes) -> bytes:
    """What claims an encoding without a magic number and inflates to nothing: text that never was encoded, or a capture cut too short to tell."""
    return b"" if _CONTROL.search(body, 0, 512) else body


def _zlib(body: bytes, window_bits: int, limit: int) -> bytes:
    """All members of a gzip body (or one zlib stream), up to where it breaks."""
    pieces, size, rest = [], 0, body
    while rest:
        stream = zlib.decompressobj(window_bits)
        try:
            piece = stream.decompress(rest, limit + 1 - size)
        except zlib.error:
            break  # what follows the readable members is padding or damage
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise TooLarge(f"more than {limit} bytes")
        rest = stream.unused_data if stream.eof and window_bits == 31 else b""
    return b"".join(pieces)


def _brotli(body: bytes, limit: int) -> bytes:
    stream, pieces, size = brotli.Decompressor(), [], 0
    try:
        for start in range(0, len(body), _STEP):
            piece = stream.process(body[start : start + _STEP], output_buffer_limit=limit + 1)
            while True:
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise TooLarge(f"more than {limit} bytes")
                if stream.is_finished() or stream.can_accept_more_data():
                    break
                piece = stream.process(b"", output_buffer_limit=limit + 1)
    except brotli.error:
        return b"".join(pieces)
    return b"".join(pieces)


def _zstd(body: bytes, limit: int) -> bytes:
    pieces, size = [], 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:
            while piece := stream.read(_STEP):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise TooLarge(f"more than {limit} bytes")
    except OSError:
        return b"".join(pieces)
    return b"".join(pieces)
