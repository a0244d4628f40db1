"""Which bytes make a part, and the records of one.

Parts depend on the inputs and the part size alone, never on how many workers there are. Many small files share a part; a
large file is split inside: archives at record boundaries, JSONL at line ends, Parquet between row groups. A part reads the
records that begin in its bytes, so parts of any size together give exactly the rows of the whole.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.read.arc import ARC
from pipelines.read.framing import Grammar, read_archive
from pipelines.read.inflate import codec_of
from pipelines.read.record import MAX_BODY, Record, identify
from pipelines.read.split import evenly, next_member, resume, walked
from pipelines.read.tables import read_jsonl, read_page, read_parquet
from pipelines.read.warc import WARC
from pipelines.storage import many, open_input, size_of

PART_BYTES = 2 << 20  # stored bytes: ten to twenty of HTML, some seconds of work: small crawls balance, large ones do not drown in parts
_COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
_KINDS = {
    ".warc": "warc", ".wet": "warc", ".wat": "warc", ".arc": "arc", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".html": "html", ".htm": "html", ".xhtml": "html", ".txt": "text", ".text": "text",
}  # fmt: skip
_UNFINISHED = (".open", ".bad")  # what crawlers (Heritrix) append while they write, and people when a tool complained
_GRAMMARS: dict[str, Grammar] = {"warc": WARC, "arc": ARC}


def kind_of(uri: str) -> str:
    """The kind of file by its name; "" if it is none we read. How it is compressed, its bytes tell."""
    name = uri.split("?")[0].lower()
    for suffix in (*_UNFINISHED, *_COMPRESSED):
        name = name.removesuffix(suffix)
    return _KINDS.get("." + name.rpartition(".")[2], "")


def plan_parts(uris: Sequence[str], part_bytes: int = PART_BYTES, whole: bool = False) -> list[dict[str, Any]]:
    """Payloads {"pieces": [{"uri", "start", "end"}]}, one a part; of Parquet files start and end number row groups.

    `whole`: somebody else reads the files, of whatever kind: none is split.

    Raises:
        UserError: a file cannot be reached, or is of a kind nobody here reads.
    """
    parts: list[dict[str, Any]] = []
    small: list[dict[str, Any]] = []
    room = part_bytes
    if not whole and (unknown := [uri for uri in uris if not kind_of(uri)]):
        raise UserError(f"{unknown[0]}: not a crawl file (known: {', '.join(sorted(_KINDS))}, also .gz and .zst)")
    for uri, (size, ranged) in zip(uris, many(size_of, uris), strict=True):
        size = size or (0 if ranged else part_bytes)  # untold
        edges = _edges(uri, size, part_bytes) if size > part_bytes and ranged and not whole else []
        if len(edges) > 2:
            parts += [{"pieces": [{"uri": uri, "start": start, "end": end}]} for start, end in zip(edges, edges[1:], strict=False)]
            continue
        if small and size > room:
            parts.append({"pieces": small})
            small, room = [], part_bytes
        small.append({"uri": uri})
        room -= size
    if small:
        parts.append({"pieces": small})
    return parts


def records(payload: dict[str, Any], max_body: int = MAX_BODY, tally: Counter[str] | None = None) -> Iterator[Record]:
    """All records of a part, in order; what cannot be read is a record with a reason.

    `tally` is given the count of every archive record met, by type: requests and metadata too.
    """
    for piece in payload["pieces"]:
        uri, start, end = piece["uri"], piece.get("start", 0), piece.get("end")
        source = uri.split("?")[0].rstrip("/").rpartition("/")[2]
        kind = kind_of(uri)
        with open_input(uri) as file:
            codec = _codec(file)
            if grammar := _GRAMMARS.get(kind):
                yield from _archive(file, source, codec, grammar, start, end, max_body, Counter() if tally is None else tally)
            elif kind == "jsonl":
                yield from read_jsonl(file, source, codec, max_body, start, end)
            elif kind == "parquet":
                yield from read_parquet(file, source, max_body, start, end)
            elif codec:
                yield Record(source, 0, id=identify("", source, 0)).rejected("compressed_page", f"a single page compressed with {codec}")
            else:
                yield from read_page(file, source, uri, kind == "html", max_body)


def _archive(
    file: BinaryIO, source: str, codec: str, grammar: Grammar, start: int, end: int | None, max_body: int, tally: Counter[str]
) -> Iterator[Record]:
    def size() -> int:
        return file.seek(0, 2)

    if codec == "gzip" and end is not None:  # edges of gzip files are nominal
        end, start = (next_member(file, edge, size(), grammar.begins, proven=True) for edge in (end, start))  # the start last: there reading begins
    elif codec == "" and end is not None and start == 0 and end == size():
        end = None
    yield from read_archive(file, source, codec, grammar, start, end, max_body, lambda at: resume(file, at, size(), codec, grammar.begins), tally)


def _codec(file: BinaryIO) -> str:
    """How the file is compressed, by its first bytes: names lie."""
    head = file.read(4)
    file.seek(0)
    return codec_of(head)


def _edges(uri: str, size: int, part_bytes: int) -> list[int]:
    """Where a file is split: byte offsets, or numbers of row groups; fewer than three edges are no split."""
    kind = kind_of(uri)
    with open_input(uri) as file:
        if kind == "parquet":
            return _row_groups(file, part_bytes)
        codec = _codec(file)
        if kind == "jsonl" and not codec:
            return evenly(size, part_bytes)
        if kind not in _GRAMMARS or codec == "bz2":
            return []
        return evenly(size, part_bytes) if codec == "gzip" else walked(file, size, codec, _GRAMMARS[kind], part_bytes)


def _row_groups(file: BinaryIO, part_bytes: int) -> list[int]:
    try:
        about = pq.ParquetFile(file).metadata
    except (OSError, ValueError):  # reading it will say so
        return []
    edges, held = [0], 0
    for group in range(about.num_row_groups):
        stored = sum(about.row_group(group).column(column).total_compressed_size for column in range(about.num_columns))
        if held and held + stored > part_bytes:
            edges.append(group)
            held = 0
        held += stored
    return [*edges, about.num_row_groups]
