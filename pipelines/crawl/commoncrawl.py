"""Common Crawl by HTTP: `commoncrawl:CC-MAIN-2024-22?files=1&megabytes=50`.

A crawl lists its files in `crawl-data/<crawl>/<kind>.paths.gz`. The wanted ones are fetched with range requests, in
order, until the megabytes are spent; the last file is cut at its last whole gzip member, so it is a valid WARC. An
interrupted download goes on from the bytes that are there.
"""

import gzip
import os
import re
import zlib
from dataclasses import dataclass
from urllib.parse import parse_qsl

from pipelines.errors import UserError
from pipelines.progress import Progress, ProgressEvent
from pipelines.storage import open_input

DATA_HOST = "https://data.commoncrawl.org"  # Common Crawl's public data host
BASE_VARIABLE = "GRISTMILL_COMMONCRAWL"  # environment variable naming a mirror
STEP = 4 << 20  # bytes a range request
_CRAWL = re.compile(r"CC-[A-Z]+-\d{4}(?:-\d{2,})?(?:-\d+)?")
_KINDS = ("warc", "wet")


@dataclass(frozen=True)
class Request:
    """What a `commoncrawl:` source asks for. `megabytes` (10^6 bytes, over all files) of 0 means whole files."""

    crawl: str
    files: int = 1
    megabytes: float = 0
    skip: int = 0
    kind: str = "warc"


def parse(source: str) -> Request:
    """`commoncrawl:CRAWL?files=N&megabytes=M&skip=K&kind=warc|wet`.

    Raises:
        UserError: it is not of that form.
    """
    crawl, _, query = source.removeprefix("commoncrawl:").partition("?")
    if not _CRAWL.fullmatch(crawl):
        raise UserError(f"{source}: after commoncrawl: comes a crawl's name, such as CC-MAIN-2024-22")
    values = dict(parse_qsl(query, keep_blank_values=True))
    try:
        request = Request(
            crawl, int(values.pop("files", 1)), float(values.pop("megabytes", 0)), int(values.pop("skip", 0)), values.pop("kind", "warc")
        )
    except ValueError:
        raise UserError(f"{source}: files, skip and megabytes are numbers") from None
    if values:
        raise UserError(f"{source}: unknown parameter {next(iter(values))}; known: files, megabytes, skip, kind")
    if request.files < 1 or request.megabytes < 0 or request.skip < 0 or request.kind not in _KINDS:
        raise UserError(f"{source}: files must be at least 1, megabytes and skip not negative, kind one of {', '.join(_KINDS)}")
    return request


def fetch(request: Request, out: str, progress: Progress, base: str | None = None) -> list[str]:
    """Download the requested files into a local folder; returns their paths.

    `base` defaults to $GRISTMILL_COMMONCRAWL, else Common Crawl's public host.

    Raises:
        UserError: the crawl is unknown, or the host cannot be reached.
    """
    base = (base or os.environ.get(BASE_VARIABLE) or DATA_HOST).rstrip("/")
    with open_input(f"{base}/crawl-data/{request.crawl}/{request.kind}.paths.gz") as file:
        listing = file.read()
    try:
        listed = gzip.decompress(listing).decode("utf-8").split()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        raise UserError(f"commoncrawl: {base} did not answer with a list of paths for {request.crawl}") from None
    wanted = listed[request.skip : request.skip + request.files]
    if not wanted:
        raise UserError(f"commoncrawl: {request.crawl} lists {len(listed)} {request.kind} files, none after {request.skip}")
    budget = round(request.megabytes * 1_000_000) or None
    os.makedirs(out, exist_ok=True)
    paths = []
    for index, path in enumerate(wanted):
        progress(ProgressEvent("crawl", index, len(wanted), "files", path.rpartition("/")[2]))
        final = os.path.join(out, path.rpartition("/")[2])
        if not os.path.exists(final):
            _download(f"{base}/{path}", final, budget, progress, (index, len(wanted)))
        size = os.path.getsize(final)
        if size:
            paths.append(final)
        if budget is not None and (budget := budget - size) <= 0:
            break
    progress(ProgressEvent("crawl", len(wanted), len(wanted), "files"))
    if not any(map(os.path.getsize, paths)):
        raise UserError(f"commoncrawl: {request.megabytes:g} megabytes hold no whole record; ask for more")
    return paths


def _download(url: str, final: str, limit: int | None, progress: Progress, position: tuple[int, int]) -> None:
    partial = f"{final}.partial"
    have = os.path.getsize(partial) if os.path.exists(partial) else 0
    with open_input(url) as source, open(partial, "ab") as file:
        size = source.seek(0, os.SEEK_END)
        end = size if limit is None else min(size, limit)
        source.seek(have)
        while have < end:
            have += file.write(source.read(min(STEP, end - have)))
            progress(ProgressEvent("crawl", *position, "files", f"{have / 1e6:.0f} MB"))
        file.flush()
        if limit is not None and have >= limit:
            file.truncate(whole_members(partial, limit))
    os.replace(partial, final)


def whole_members(path: str, limit: int) -> int:
    """Bytes of the file, up to `limit`, that complete gzip members fill."""
    whole = position = 0
    stream = zlib.decompressobj(31)
    with open(path, "rb") as file:
        while block := file.read(min(1 << 20, max(limit - position, 0))):
            position += len(block)
            while block:
                try:
                    stream.decompress(block)
                except zlib.error:
                    return whole
                if not stream.eof:
                    break
                block = stream.unused_data
                whole = position - len(block)
                stream = zlib.decompressobj(31)
    return whole
