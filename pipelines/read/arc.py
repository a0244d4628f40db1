"""What an ARC record is (the Internet Archive's format before WARC): one line of URL, address, date, type and length, then content."""

import re

from pipelines.read.capture import finish, split_http
from pipelines.read.framing import LONGEST_HEADER, Grammar, Head
from pipelines.read.record import Record

# URLs with spaces exist, so the line is told from its end: version 1 has type and length after the date, version 2 five fields more.
_LINE = re.compile(
    rb"([A-Za-z][A-Za-z0-9+.-]{0,30}:[^\r\n]{0,8000}) [0-9A-Fa-f]{0,4}[.:][0-9A-Fa-f.:]{1,43} (\d{8,18})"
    rb" ([^ \r\n]{0,200})(?: [^ \r\n]{0,200}){0,6} (-?\w{1,15})[ \t]*\r?\n"
)


def _head(line: bytes) -> Head:
    match = _LINE.match(line)
    assert match is not None, "a record begins with such a line"
    url, date, kind, length = (group.decode("utf-8", "replace") for group in match.groups())
    fields = {"url": url, "date": date, "content-type": kind}
    return Head("warcinfo" if url.startswith("filedesc:") else "response", fields, int(length) if length.isascii() and length.isdigit() else None)


def _record(head: Head, content: bytes, record: Record, max_body: int) -> Record | None:
    if head.kind == "warcinfo":
        return None
    record.url, record.date, record.content_type = head.fields["url"], head.fields["date"], head.fields["content-type"]
    if len(content) == max_body + LONGEST_HEADER:
        return record.rejected("too_large", f"more than {max_body} bytes")
    if content[:5].upper() == b"HTTP/":
        content = split_http(record, content)
    return record if record.reason else finish(record, content, max_body)


ARC = Grammar(_LINE, (b"\n",), _head, _record)
