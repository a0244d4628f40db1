"""JSONL and Parquet files whose rows are documents already, and single HTML or text files.

Rows keep what they know: `text` (or `content`, `raw_content`), or `html`, with url, id, date and language under the names
that datatrove, Dolma, NeMo Curator and Common Crawl derivatives use.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.read.inflate import Broken, inflate
from pipelines.read.record import MAX_BODY, Record, identify

_TEXT, _HTML, _URL = ("text", "content", "raw_content", "body"), ("html", "raw_html"), ("url", "uri", "source_url", "warc_uri")
_DATE, _TITLE = ("captured_at", "date", "timestamp", "created", "date_download", "crawl_date"), ("title",)
LONGEST_LINE = 4 * MAX_BODY  # JSON escapes may quadruple a text


def read_jsonl(file: BinaryIO, source: str, codec: str, max_body: int = MAX_BODY, start: int = 0, end: int | None = None) -> Iterator[Record]:
    """One JSON object a line, of the lines that begin in bytes [start, end); a line that is none is a `read.bad_json` row."""
    before = max(start - 1, 0)
    lines = _lines((piece for _, piece in inflate(file, before, codec)), before)
    if start:
        next(lines, None)  # the line that begins before the part, or ends with its first byte
    offset = start
    try:
        for offset, line in lines:
            if end is not None and offset >= end:
                return
            if line.strip():
                yield _parse(Record(source, offset, len(line), id=identify("", source, offset)), line, max_body)
    except Broken as broken:
        yield Record(source, offset, id=identify("", source, offset, 1)).rejected("broken", f"{broken}, at stored byte {broken.at:,} or behind")


def read_parquet(file: BinaryIO, source: str, max_body: int = MAX_BODY, start: int = 0, end: int | None = None) -> Iterator[Record]:
    """One document a row of row groups [start, end), streamed by batches."""
    number = 0
    try:
        table = pq.ParquetFile(file)
        groups = range(start, table.num_row_groups if end is None else end)
        number = sum(table.metadata.row_group(index).num_rows for index in range(start))
        for batch in table.iter_batches(batch_size=64, row_groups=list(groups)):
            for row in batch.to_pylist():
                yield row_record(Record(source, number, 1, id=identify("", source, number)), row, max_body)
                number += 1
    except (pa.ArrowException, OSError) as error:
        yield Record(source, number, id=identify("", source, number, 1)).rejected("broken", f"{type(error).__name__}: {error}")


def read_page(file: BinaryIO, source: str, url: str, html: bool, max_body: int = MAX_BODY) -> Iterator[Record]:
    """A whole file as one page; its address is all the URL there is."""
    body = file.read(max_body + 1)
    record = Record(source, 0, len(body), id=identify("", url, 0), url=url, content_type="text/html" if html else "text/plain")
    record.digest = "sha1:" + hashlib.sha1(body, usedforsecurity=False).hexdigest()
    if len(body) > max_body:
        yield record.rejected("too_large", f"more than {max_body} bytes")
    elif not body.strip():
        yield record.rejected("empty")
    elif html:
        record.body = body
        yield record
    else:
        record.text = body.decode("utf-8", "replace")
        yield record


def _lines(pieces: Iterable[bytes], position: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its end); of one past the limit only the beginning is kept, the rest is passed over."""
    held: list[bytes] = []
    size = 0  # of the line being gathered, however much of it is held
    for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line = b"".join([*held, end, b"\n"])
            yield position, line
            position += size + len(end) + 1
            held, size = [], 0
        if rest:
            if size <= LONGEST_LINE:
                held.append(rest)
            size += len(rest)
    if held:
        yield position, b"".join(held)


def _parse(record: Record, line: bytes, max_body: int) -> Record:
    if len(line) > LONGEST_LINE:
        return record.rejected("too_large", f"a line of more than {LONGEST_LINE} bytes")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON; or nested past all sense
        return record.rejected("bad_json", str(error))
    return row_record(record, row, max_body) if isinstance(row, dict) else record.rejected("bad_json", f"a {type(row).__name__}, not an object")


def row_record(record: Record, row: Mapping[str, Any], max_body: int) -> Record:
    """The record of one row of a table: a document already, or a page as HTML, under the names the field uses."""
    metadata = row.get("metadata") if isinstance(row.get("metadata"), dict) else {}
    known = {**metadata, **{key: value for key, value in row.items() if value is not None}}
    record.url, record.date = _first(known, _URL), _first(known, _DATE)
    if own := _first(known, ("id", "record_id", "warc_record_id")):
        record.record_id, record.id = own, identify(own, record.source, record.offset)
    record.columns = {"title": _first(known, _TITLE)}
    text, html = _first(known, _TEXT), _first(known, _HTML)
    content = text or html
    if not content.strip():
        return record.rejected("empty", "no text, content or html in the row")
    encoded = content.encode("utf-8", "replace")
    if len(encoded) > max_body:
        return record.rejected("too_large", f"more than {max_body} bytes")
    record.digest = "sha1:" + hashlib.sha1(encoded, usedforsecurity=False).hexdigest()
    if text:
        record.text, record.content_type = text, "text/plain"
    else:
        record.body, record.content_type = encoded, "text/html; charset=utf-8"
    return record


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((str(row[name]) for name in names if row.get(name) is not None and isinstance(row[name], str | int)), "")
