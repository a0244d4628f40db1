"""Which bytes make a part, and the records of one.

Parts depend on the inputs and the part size alone, never on how many workers there are. Many small files share a part; a
gzip WARC larger than a part is split inside (at record boundaries, found while reading), a Parquet file by row groups.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.read.arc import read_arc
from pipelines.read.record import MAX_BODY, Record, identify
from pipelines.read.tables import read_jsonl, read_page, read_parquet
from pipelines.read.warc import read_warc

PART_BYTES = 2 << 20  # stored bytes: ten to twenty of HTML, some seconds of work: small crawls balance, large ones do not drown in parts
_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_KINDS = {
    ".warc": "warc", ".wet": "warc", ".wat": "warc", ".arc": "arc", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".html": "html", ".htm": "html", ".xhtml": "html", ".txt": "text", ".text": "text",
}  # fmt: skip


def kind_of(uri: str) -> tuple[str, str | None]:
    """(kind, compression) by the file's name; ("", None) if it is none we read."""
    name = uri.split("?")[0].lower()
    compression = None
    for suffix, codec in _COMPRESSED.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), codec
            break
    return _KINDS.get("." + name.rpartition(".")[2], ""), compression


def plan_parts(uris: Sequence[str], part_bytes: int = PART_BYTES) -> list[dict[str, Any]]:
    """Payloads {"pieces": [{"uri", "start", "end" | "group"}]}, one a part.

    Raises:
        UserError: a file is missing, or is of a kind nobody here reads.
    """
    parts: list[dict[str, Any]] = []
    small: list[dict[str, Any]] = []
    room = part_bytes
    for uri in uris:
        kind, compression = kind_of(uri)
        if not kind:
            raise UserError(f"{uri}: not a crawl file (known: {', '.join(sorted(_KINDS))}, also .gz and .zst)")
        fs, path = fsspec.url_to_fs(uri)
        try:
            size = fs.size(path) or 0
        except FileNotFoundError:
            raise UserError(f"{uri}: no such file") from None
        if size > part_bytes and kind == "warc" and compression == "gzip":
            count = -(-size // part_bytes)
            edges = [size * index // count for index in range(count + 1)]
            parts += [{"pieces": [{"uri": uri, "start": start, "end": end}]} for start, end in zip(edges, edges[1:], strict=False)]
        elif size > part_bytes and kind == "parquet":
            with fsspec.open(uri, "rb") as file:
                groups = pq.ParquetFile(file).num_row_groups
            parts += [{"pieces": [{"uri": uri, "group": group}]} for group in range(groups)]
        else:
            if small and size > room:
                parts.append({"pieces": small})
                small, room = [], part_bytes
            small.append({"uri": uri})
            room -= size
    if small:
        parts.append({"pieces": small})
    return parts


def records(payload: dict[str, Any], max_body: int = MAX_BODY) -> Iterator[Record]:
    """All records of a part, in order; what cannot be read is a record with a reason."""
    for piece in payload["pieces"]:
        uri = piece["uri"]
        source = uri.split("?")[0].rstrip("/").rpartition("/")[2]
        kind, compression = kind_of(uri)
        with fsspec.open(uri, "rb") as file:
            if kind == "warc":
                yield from read_warc(file, source, piece.get("start", 0), piece.get("end"), max_body)
            elif kind == "arc":
                yield from read_arc(file, source, max_body)
            elif kind == "jsonl":
                yield from read_jsonl(file, source, compression, max_body)
            elif kind == "parquet":
                yield from read_parquet(file, source, max_body, piece.get("group"))
            elif compression:
                yield Record(source, 0, id=identify("", source, 0)).rejected("compressed_page", f"a single page compressed with {compression}")
            else:
                yield from read_page(file, source, uri, kind == "html", max_body)
