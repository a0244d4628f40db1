"""What a WARC record is (ISO 28500, versions 0.17 to 1.1): header lines, a blank one, content."""

import re

from pipelines.read.capture import finish, split_http
from pipelines.read.framing import LONGEST_HEADER, Grammar, Head
from pipelines.read.record import Record, identify

_PAGES = ("response", "resource", "conversion")
_ABOUT = ("warcinfo", "request", "metadata")  # what is said about captures: no page, and none lost


def _head(block: bytes) -> Head:
    """Fields by lower-case name; of a repeated one the first counts, a folded line continues the one before."""
    fields: dict[str, str] = {}
    last = ""
    for line in block.decode("utf-8", "replace").splitlines()[1:]:
        if line[:1] in " \t":
            if last:
                fields[last] = f"{fields[last]} {line.strip()}".strip()
            continue
        name, _, value = line.partition(":")
        name = name.strip().lower()
        last = name if name not in fields else ""
        fields.setdefault(name, value.strip())
    length = fields.get("content-length", "")
    return Head(fields.get("warc-type", "").lower(), fields, int(length) if length.isascii() and length.isdigit() and len(length) < 16 else None)


def _record(head: Head, content: bytes, record: Record, max_body: int) -> Record | None:
    """The page, or the reason why there is none; None of records that are about a capture, not one."""
    fields = head.fields
    if head.kind in _ABOUT:
        return None
    record.record_id = fields.get("warc-record-id", "").strip("<>").removeprefix("urn:uuid:")
    if record.record_id:
        record.id = identify(record.record_id, record.source, record.offset)
    record.url = fields.get("warc-target-uri", "").strip("<>")
    record.date = fields.get("warc-date", "")
    record.content_type = fields.get("content-type", "")
    record.digest = fields.get("warc-payload-digest") or fields.get("warc-block-digest") or ""
    record.damage = record.damage or (f"truncated:{fields['warc-truncated'].lower()}" if fields.get("warc-truncated") else "")
    if head.kind == "revisit":
        return record.rejected("revisit", fields.get("warc-refers-to-target-uri") or fields.get("warc-profile") or "")
    if head.kind == "continuation":
        return record.rejected("continuation", f"segment {fields.get('warc-segment-number', '?')} of {fields.get('warc-segment-origin-id', '?')}")
    if head.kind not in _PAGES:
        return record.rejected("unknown_type", head.kind or "no WARC-Type")
    if len(content) == max_body + LONGEST_HEADER:
        return record.rejected("too_large", f"more than {max_body} bytes")
    if head.kind == "response" and not record.content_type.lower().startswith("text/dns"):
        content = split_http(record, content)
    return record if record.reason else finish(record, content, max_body)


# The version line and one more: a page that merely speaks of WARC/1.0 is no record.
WARC = Grammar(re.compile(rb"WARC/\d\.\d{1,2}[ \t]*\r?\n[A-Za-z][A-Za-z0-9-]{0,80}[ \t]*:"), (b"\r\n\r\n", b"\n\n"), _head, _record)
