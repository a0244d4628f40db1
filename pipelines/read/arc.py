"""ARC files (the Internet Archive's format before WARC) through warcio, which reads them as WARC records."""

from collections.abc import Iterator
from typing import BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from pipelines.read.record import MAX_BODY, Record, identify
from pipelines.read.warc import finish

_HEADERS = 1 << 20


def read_arc(file: BinaryIO, source: str, max_body: int = MAX_BODY) -> Iterator[Record]:
    """The documents of an ARC file; a break ends the file with a `read.broken` row."""
    offset = 0
    try:
        iterator = ArchiveIterator(file, arc2warc=True)
        for arc in iterator:
            raw = arc.raw_stream.read(max_body + _HEADERS)
            offset = iterator.get_record_offset()  # warcio skips to the record's end to tell where it is: only after reading
            if arc.rec_type not in ("response", "resource"):
                continue
            record = _record(arc, raw, source, offset, max_body)
            record.length = iterator.get_record_length()
            yield record
    except (ArchiveLoadFailed, OSError, ValueError, EOFError) as error:
        yield Record(source, offset, id=identify("", source, offset, 1)).rejected("broken", f"{type(error).__name__}: {error}")


def _record(arc, raw: bytes, source: str, offset: int, max_body: int) -> Record:
    headers = arc.rec_headers
    record = Record(
        source,
        offset,
        id=identify("", source, offset),  # warcio makes up a random record id: no use
        url=(headers.get_header("WARC-Target-URI") or "").strip(),
        date=headers.get_header("WARC-Date") or "",
        content_type=headers.get_header("Content-Type") or "",
    )
    if len(raw) == max_body + _HEADERS:
        return record.rejected("too_large", f"more than {max_body} bytes")
    if arc.http_headers is not None:
        code = arc.http_headers.get_statuscode()
        record.status = int(code) if code.isdigit() else None
        record.headers = {name.lower(): value for name, value in reversed(arc.http_headers.headers)}
        record.content_type = record.headers.get("content-type", "")
    return finish(record, raw, max_body)
