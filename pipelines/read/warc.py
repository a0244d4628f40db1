"""WARC and WET files (plain, gzip, zstd, lz4) through fastwarc, which forgives what real crawlers write.

A gzip file of many members can be read in parts: a part begins at the first member at or after its first byte that holds
a WARC record, and ends where the next part begins, so neighbours agree without talking. When the file breaks in the
middle, the break is a `read.broken` row and reading goes on at the next readable member.
"""

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecordType

from pipelines.read.payload import TooLarge, decode_payload
from pipelines.read.record import MAX_BODY, Record, identify

_KINDS = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion | WarcRecordType.revisit
_HEADERS = 1 << 20  # bytes allowed for HTTP headers and chunk framing beside the body
_SCAN = 1 << 20
_GZIP = b"\x1f\x8b\x08"
_HTML = ("text/html", "application/xhtml+xml", "application/xhtml")
_TEXT = ("text/plain",)


def read_warc(file: BinaryIO, source: str, start: int = 0, end: int | None = None, max_body: int = MAX_BODY) -> Iterator[Record]:
    """Records of the file's bytes from the first member at or after `start` to the first one at or after `end`."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    gzipped = file.read(3) == _GZIP
    end = size if end is None or end >= size else next_member(file, end, size)
    position = next_member(file, start, size) if start and gzipped else start
    seen: dict[int, int] = {}
    while position < end:
        window = _Window(file, position, end)
        broken_at = yield from _read_window(window, source, position, end, max_body, seen)
        if broken_at is None or not gzipped:
            return
        position = next_member(file, broken_at + 1, size)


def next_member(file: BinaryIO, position: int, size: int) -> int:
    """The first byte at or after `position` where a gzip member begins that holds the start of a WARC record, else `size`."""
    if position == 0:
        return 0
    while position < size:
        file.seek(position)
        block = file.read(_SCAN)
        if not block:
            return size
        at = block.find(_GZIP)
        while at >= 0:
            file.seek(position + at)
            if _begins_record(file.read(4096)):
                return position + at
            at = block.find(_GZIP, at + 1)
        position += max(len(block) - 2, 1)  # a magic may straddle two blocks
    return size


def _begins_record(head: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(head, 16).startswith((b"WARC/", b"\r\nWARC/", b"\r\n\r\nWARC/"))
    except zlib.error:
        return False


def _read_window(window: "_Window", source: str, base: int, end: int, max_body: int, seen: dict[int, int]) -> Iterator[Record]:
    """Yield the window's records; return the absolute position of a break, or None at a clean end."""
    pending: Record | None = None
    last = base
    try:
        for warc in ArchiveIterator(window, record_types=WarcRecordType.any_type, parse_http=False, quirks_mode=True):
            last = base + max(warc.stream_pos, 0)
            if pending is not None:
                yield _placed(pending, last)
                pending = None
            if warc.record_type & _KINDS:
                pending = _record(warc, source, last, max_body, seen)
    except (OSError, ValueError, EOFError) as error:
        if pending is not None:
            yield _placed(pending, min(window.position(), end))
        loss = Record(source, last, id=identify("", source, last, _ordinal(seen, -last - 1) + 1))
        yield loss.rejected("broken", f"{type(error).__name__}: {error}")
        return last
    if pending is not None:
        yield _placed(pending, end)
    return None


def _placed(record: Record, next_position: int) -> Record:
    """Its length is known when the next record begins (0 in a file that is one single compressed stream)."""
    record.length = max(next_position - record.offset, 0)
    return record


def _ordinal(seen: dict[int, int], offset: int) -> int:
    seen[offset] = seen.get(offset, -1) + 1
    return seen[offset]


def _record(warc, source: str, offset: int, max_body: int, seen: dict[int, int]) -> Record:
    headers = warc.headers
    record_id = (headers.get("WARC-Record-ID") or "").strip().strip("<>").removeprefix("urn:uuid:")
    record = Record(
        source,
        offset,
        id=identify(record_id, source, offset, _ordinal(seen, offset)),
        url=(headers.get("WARC-Target-URI") or "").strip().strip("<>"),
        record_id=record_id,
        date=(headers.get("WARC-Date") or "").strip(),
        content_type=(headers.get("Content-Type") or "").strip(),
        digest=headers.get("WARC-Payload-Digest") or headers.get("WARC-Block-Digest") or "",
    )
    if warc.record_type == WarcRecordType.revisit:
        return record.rejected("revisit", headers.get("WARC-Refers-To-Target-URI") or headers.get("WARC-Profile") or "")
    declared = headers.get("Content-Length") or ""
    raw = warc.reader.read(max_body + _HEADERS)
    if len(raw) == max_body + _HEADERS:
        return record.rejected("too_large", f"more than {max_body} bytes")
    if warc.record_type == WarcRecordType.response and not record.content_type.lower().startswith("text/dns"):
        raw = split_http(record, raw)
        if record.reason:
            return record
    short = f"{len(raw)} bytes of {declared} declared" if declared.isdigit() and not raw and int(declared) else ""
    return finish(record, raw, max_body, short)


def split_http(record: Record, raw: bytes) -> bytes:
    """Take status and headers from the front of an HTTP message; the payload remains."""
    head, separator, payload = raw.partition(b"\r\n\r\n")
    if not separator or (b"\n\n" in head):
        head, separator, payload = raw.partition(b"\n\n")
    lines = head.decode("utf-8", "replace").splitlines()
    if not lines or not lines[0].upper().startswith("HTTP/"):
        record.rejected("not_http", (lines[0] if lines else "empty")[:80])
        return b""
    status = lines[0].split(None, 2)
    record.status = int(status[1]) if len(status) > 1 and status[1].isdigit() else None
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    record.headers = fields
    record.content_type = fields.get("content-type", "")
    return payload


def finish(record: Record, raw: bytes, max_body: int, short: str = "") -> Record:
    """Judge status and type, undo the encodings, set body or text."""
    if record.status is not None and record.status != 200:
        return record.rejected("http_status", str(record.status))
    try:
        body = decode_payload(raw, record.headers.get("transfer-encoding", ""), record.headers.get("content-encoding", ""), max_body)
    except TooLarge as error:
        return record.rejected("too_large", str(error))
    if not body.strip():
        return record.rejected("empty", short)
    kind = record.content_type.split(";")[0].strip().lower()
    if kind in _TEXT:
        record.text = body.decode("utf-8", "replace")
    elif kind in _HTML or (kind in ("", "unk", "no-type", "application/octet-stream", "application/http") and looks_like_html(body)):
        record.body = body
    else:
        return record.rejected("not_html", kind or "no content type")
    return record


def looks_like_html(body: bytes) -> bool:
    """WHATWG's sniffing, for captures whose server named no type."""
    head = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n\x0c").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<title", b"<!--", b"<div", b"<p", b"<h1", b"<?xml")) and b"<" in head


class _Window(io.RawIOBase):
    """Bytes [start, end) of a file, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, end: int):
        self._file, self._start, self._end = file, start, end
        file.seek(start)

    def position(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._file.tell()
        return self._file.read(left if size < 0 else min(size, left)) if left > 0 else b""

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: self._start, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._end}[whence]
        return self._file.seek(origin + offset) - self._start
