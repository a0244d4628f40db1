"""One record of a crawl file: a captured page, or the named loss of one.

A record that cannot become a document carries the reason it cannot (`read.*`) instead of being skipped, so a crawl's rows
always add up. `id` is the xxh3-128 of the WARC record id where there is one, else of source and offset: it survives
re-runs, other part sizes and moved files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import xxhash

MAX_BODY = 16 << 20  # bytes of an inflated body; Common Crawl truncates captures at 1 MB (later 5 MB)


@dataclass(slots=True)
class Record:
    """`body` holds bytes to extract from, or `text` a text that is already plain; with a `reason` neither counts.

    `offset` and `length` are bytes in `source` as stored; `columns` are further document columns that the file gave.
    `damage` says that a record was not captured or stored whole: "length" (its declared length is wrong; it was taken to go on
    to where the next record begins), "cut" (the file ends inside it), "broken" (so does what could be inflated), or the
    crawler's own word ("truncated:length", "truncated:time", ...).
    """

    source: str
    offset: int = -1
    length: int = -1
    id: str = ""
    url: str = ""
    record_id: str = ""
    date: str = ""
    content_type: str = ""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    text: str | None = None
    digest: str = ""
    columns: Mapping[str, object] = field(default_factory=dict)
    damage: str = ""
    reason: str = ""
    detail: str = ""

    def rejected(self, reason: str, detail: str = "") -> "Record":
        """This record as a loss: its bytes are dropped."""
        self.reason, self.detail, self.body, self.text = f"read.{reason}", detail[:500], b"", None
        return self


def identify(record_id: str, source: str, offset: int, ordinal: int = 0) -> str:
    """Hex xxh3-128 of the record id, else of "source:offset" (and the ordinal where several records share an offset)."""
    key = record_id or (f"{source}:{offset}:{ordinal}" if ordinal else f"{source}:{offset}")
    return xxhash.xxh3_128_hexdigest(key.encode("utf-8", "replace"))
