"""From a captured HTTP message to a page, or to the reason why it is none."""

from pipelines.read.payload import TooLarge, decode_payload
from pipelines.read.record import Record

_HTML = ("text/html", "application/xhtml+xml", "application/xhtml")
_TEXT = ("text/plain",)
_UNNAMED = ("", "unk", "unknown", "no-type", "application/octet-stream", "application/http")  # what archives write where the server named no type


def split_http(record: Record, message: bytes) -> bytes:
    """Take status and headers from the front of an HTTP message; the payload remains."""
    head, separator, payload = message.partition(b"\r\n\r\n")
    if not separator or (b"\n\n" in head):
        head, separator, payload = message.partition(b"\n\n")
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


def finish(record: Record, payload: bytes, max_body: int) -> Record:
    """Judge status and type, undo the encodings, set body or text."""
    if record.status is not None and record.status != 200:
        return record.rejected("http_status", str(record.status))
    try:
        body = decode_payload(payload, record.headers.get("transfer-encoding", ""), record.headers.get("content-encoding", ""), max_body)
    except TooLarge as error:
        return record.rejected("too_large", str(error))
    if not body.strip():
        return record.rejected("empty")
    kind = record.content_type.split(";")[0].strip().lower()
    if kind in _TEXT:
        record.text = body.decode("utf-8", "replace")
    elif kind in _HTML or (kind in _UNNAMED and looks_like_html(body)):
        record.body = body
    else:
        return record.rejected("not_html", kind or "no content type")
    return record


def looks_like_html(body: bytes) -> bool:
    """WHATWG's sniffing, for captures whose server named no type."""
    head = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n\x0c").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<title", b"<!--", b"<div", b"<p", b"<h1", b"<?xml")) and b"<" in head
