"""Records of an archive, one after the other, whatever their headers claim.

A record is a header that declares a length, and that many bytes. Crawlers write wrong lengths, transfers turn CRLF into LF
and cut files; a reader that believes every length then skips pages without a word, and one that stops at the first lie
loses the rest of the file. So a length is checked before it is used: behind the content there must be the end or another
record. Where there is neither, the record goes on to where the next one begins, and says so (`damage`). Bytes that belong to no
record are a loss with their count. The work is linear in the file's size, whatever the file is like.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipelines.read.record import Record, identify
from pipelines.read.stored import Stored

LONGEST_HEADER = 1 << 20  # bytes; the longest real ones carry data: URLs of some kilobytes


@dataclass(frozen=True)
class Head:
    """A record's header: the kind of record, its fields by lower-case name, the content's declared length (None if unreadable)."""

    kind: str
    fields: dict[str, str]
    length: int | None


@dataclass(frozen=True)
class Grammar:
    """An archive format: where a record begins, which bytes end its header, what the header says, what becomes of the content."""

    begins: re.Pattern[bytes]
    ends: tuple[bytes, ...]
    head: Callable[[bytes], Head]
    record: Callable[[Head, bytes, Record, int], Record | None]


def read_archive(
    file: BinaryIO, source: str, codec: str, grammar: Grammar, start: int, end: int | None, max_body: int, resume: Callable[[int], int], tally: Counter[str]
) -> Iterator[Record]:
    """Records that begin at stored offsets in [start, end); `resume(offset)` finds the next readable member behind one that breaks.

    `tally` counts every record met, by kind: those that hold no page (requests, metadata) too.
    """
    seen: Counter[int] = Counter()
    while end is None or start < end:
        stored = Stored(file, start, codec, grammar.begins)
        told = yield from _read(stored, source, grammar, end, max_body, seen, tally)
        if told is None:
            return
        if not told:
            assert stored.broken is not None
            yield _loss(source, stored.broken.at, seen, "broken", str(stored.broken))
        if stored.broken is None or stored.broken.cut or not codec:
            return
        start = resume(stored.broken.at)


def _read(
    stored: Stored, source: str, grammar: Grammar, end: int | None, max_body: int, seen: Counter[int], tally: Counter[str]
) -> Iterator[Record]:
    """Yield records up to `end` (returns None), or up to a break (returns whether a record told of it)."""
    told = False
    while True:
        stored.drop_blank()
        offset = stored.offset
        if not stored.fill(1):
            return told if stored.broken else None
        if end is not None and offset >= end:
            return None
        stored.enter()
        size = stored.line_end(grammar.ends, LONGEST_HEADER) if stored.begins() else 0
        if size <= 0:
            dropped = _drop_to_record(stored)  # the next record may hide in what passed for a header
            told = stored.broken is not None and not stored.fill(1)
            why = ("bad_header", f"no end of a header in {dropped} bytes") if size else ("no_record", f"{dropped} bytes that belong to no record")
            yield _loss(source, offset, seen, *(("broken", str(stored.broken)) if told else why))
            continue
        head = grammar.head(stored.take(size))
        tally[head.kind] += 1
        extent, damage = _extent(stored, head.length)
        content = stored.take(min(extent, max_body + LONGEST_HEADER))
        empty = Record(source, offset, id=identify("", source, offset, _ordinal(seen, offset)), damage=damage)
        record = grammar.record(head, content, empty, max_body)
        stored.drop(extent - len(content))
        stored.drop_blank()
        if record is not None:
            broken = stored.broken if not stored.fill(1) and stored.broken and (damage == "cut" or stored.broken.at <= offset) else None
            if told := broken is not None:
                record.damage = "cut" if broken.cut else "broken"
            record.length = max(stored.offset - offset, 0)  # 0 for records that share one compressed stream
            yield record


def _extent(stored: Stored, declared: int | None) -> tuple[int, str]:
    """(bytes of content, damage): the declared length where the end or a record follows, else up to the next record."""
    if declared is not None and stored.fits(declared):
        return declared, ""
    extent = stored.to_record()
    if stored.fill(extent + 1) > extent or (declared is not None and declared <= extent):
        return extent, "length"
    return extent, "cut"


def _drop_to_record(stored: Stored) -> int:
    dropped = step = stored.drop(1)
    while step and not stored.begins():
        dropped += (step := stored.drop(max(stored.to_record(), 1)))
    return dropped


def _loss(source: str, offset: int, seen: Counter[int], reason: str, detail: str) -> Record:
    return Record(source, offset, id=identify("", source, offset, _ordinal(seen, -offset - 1) + 1)).rejected(reason, detail)


def _ordinal(seen: Counter[int], offset: int) -> int:
    seen[offset] += 1
    return seen[offset] - 1
