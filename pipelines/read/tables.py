"""JSONL and Parquet files whose rows are documents already, and single HTML or text files.

Rows keep what they know: `text` (or `content`, `raw_content`), or `html`, with url, id, date and language under the names
that datatrove, Dolma, NeMo Curator and Common Crawl derivatives use.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.read.record import MAX_BODY, Record, identify

_TEXT, _HTML, _URL = ("text", "content", "raw_content", "body"), ("html", "raw_html"), ("url", "uri", "source_url", "warc_uri")
_DATE, _TITLE = ("captured_at", "date", "timestamp", "created", "date_download", "crawl_date"), ("title",)
LONGEST_LINE = 4 * MAX_BODY  # JSON escapes may quadruple a text


def read_jsonl(file: BinaryIO, source: str, compression: str | None, max_body: int = MAX_BODY) -> Iterator[Record]:
    """One JSON object a line; a line that is none is a `read.bad_json` row."""
    stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression) if compression else file
    offset = 0
    lines = _lines(stream)
    while True:
        try:
            line = next(lines)
        except StopIteration:
            return
        except OSError as error:  # a compressed stream that breaks
            yield Record(source, offset, id=identify("", source, offset, 1)).rejected("broken", f"{type(error).__name__}: {error}")
            return
        if line.strip():
            record = Record(source, offset, len(line), id=identify("", source, offset))
            if len(line) > LONGEST_LINE:
                yield record.rejected("too_large", f"a line of more than {LONGEST_LINE} bytes")
            else:
                try:
                    row = json.loads(line)
                except ValueError as error:
                    yield record.rejected("bad_json", str(error))
                else:
                    yield _row(record, row, max_body) if isinstance(row, dict) else record.rejected("bad_json", f"a {type(row).__name__}, not an object")
        offset += len(line)


def read_parquet(file: BinaryIO, source: str, max_body: int = MAX_BODY, group: int | None = None) -> Iterator[Record]:
    """One document a row, streamed by batches; `group` limits to one row group."""
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        yield Record(source, 0, id=identify("", source, 0)).rejected("broken", f"{type(error).__name__}: {error}")
        return
    number = sum(table.metadata.row_group(index).num_rows for index in range(group)) if group else 0
    for batch in table.iter_batches(batch_size=64, row_groups=None if group is None else [group]):
        for row in batch.to_pylist():
            yield _row(Record(source, number, 1, id=identify("", source, number)), row, max_body)
            number += 1


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


def _lines(stream: Any, block: int = 1 << 20) -> Iterator[bytes]:
    """Lines with their ends; one past the limit comes in one over-long piece and its rest is dropped unread."""
    buffer, skipping = b"", False
    while piece := stream.read(block):
        buffer += piece
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if not skipping:
                yield line + b"\n"
            skipping = False
        if len(buffer) > LONGEST_LINE:
            if not skipping:
                yield buffer
            buffer, skipping = b"", True
    if buffer and not skipping:
        yield buffer


def _row(record: Record, row: Mapping[str, Any], max_body: int) -> Record:
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
