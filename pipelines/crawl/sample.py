"""The sample crawl: real pages out of source archives, written as WARC, the same bytes on every machine.

A page's URL is the one it was captured from where the archive tells: in a test file's table of URLs and cached file names
(read as syntax, never run), or in the page's own canonical link. Otherwise it is `pypi://name/version/path`.
"""

import ast
import io
import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from typing import BinaryIO

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipelines.crawl.archives import Archive, Member, is_page, members, obtain

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://gristmill.invalid/sample-crawl")
_LINK = re.compile(r"<link\b[^>]*\brel\s*=\s*[\"']?canonical[\"']?[^>]*>|<meta\b[^>]*\bproperty\s*=\s*[\"']og:url[\"'][^>]*>", re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:href|content)\s*=\s*[\"'](https?://[^\"'\s<>]{4,1000})[\"']", re.IGNORECASE)
_HEAD = 1 << 18  # bytes searched for the page's own address
_EARLIEST = 631152000  # 1990-01-01: archives with a zeroed time say nothing


def write_sample(archive: Archive, file: BinaryIO) -> int:
    """Write one archive's pages as a gzip WARC (a member a record); returns how many."""
    found = list(members(obtain(archive), archive.folders))
    known = captured_urls(found)
    writer = WARCWriter(file, gzip=True)
    writer.write_record(_about(writer, archive))
    pages = 0
    for member in found:
        if is_page(member) and member.content.strip():
            writer.write_record(_response(writer, archive, member, url_of(archive, member, known)))
            pages += 1
    return pages


def captured_urls(found: list[Member]) -> dict[str, str]:
    """File name -> URL, from every table in the archive's .py and .json files that maps the one to the other."""
    urls: dict[str, str] = {}
    for member in found:
        if member.path.endswith(".py"):
            pairs = _python_pairs(member.content)
        elif member.path.endswith(".json"):
            pairs = _json_pairs(member.content)
        else:
            continue
        for url, name in pairs:
            if url.startswith(("http://", "https://")) and name.lower().endswith((".html", ".htm")):
                urls.setdefault(name.rpartition("/")[2], url)
    return urls


def url_of(archive: Archive, member: Member, known: dict[str, str]) -> str:
    """Where the page was captured, as far as the archive tells."""
    if url := known.get(member.path.rpartition("/")[2]):
        return url
    for link in _LINK.finditer(member.content[:_HEAD].decode("utf-8", "replace")):
        if address := _ADDRESS.search(link.group()):
            return unescape(address.group(1))
    return f"pypi://{archive.name.lower()}/{archive.version}/{member.path}"


def _python_pairs(source: bytes) -> Iterator[tuple[str, str]]:
    """(key, value) of every dictionary display whose keys and values are strings, or (key, its "file")."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # Python 2, or no Python: no table to be had
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield key.value, value.value
                    elif isinstance(value, ast.Dict):
                        for inner_key, inner in zip(value.keys, value.values, strict=True):
                            is_file = isinstance(inner_key, ast.Constant) and inner_key.value == "file"
                            if is_file and isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                                yield key.value, inner.value


def _json_pairs(source: bytes) -> Iterator[tuple[str, str]]:
    """(URL, file name) of {url: name}, {url: {"file": name}} and {name: {"url": url}}."""
    try:
        table = json.loads(source)
    except ValueError:
        return
    for key, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, dict):
            if isinstance(value.get("file"), str):
                yield key, value["file"]
            elif isinstance(value.get("url"), str):
                yield value["url"], key
        elif isinstance(value, str):
            yield key, value


def _about(writer: WARCWriter, archive: Archive):
    text = f"software: gristmill\r\nformat: WARC File Format 1.0\r\ndescription: pages of {archive.label}, sha256 {archive.sha256}\r\n"
    headers = {
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(_NAMESPACE, archive.label)}>",
        "WARC-Date": "2000-01-01T00:00:00Z",  # a constant: the file must not depend on when it was made
        "Content-Type": "application/warc-fields",
    }
    return writer.create_warc_record("", "warcinfo", payload=io.BytesIO(text.encode()), warc_headers_dict=headers)


def _response(writer: WARCWriter, archive: Archive, member: Member, url: str):
    moment = datetime.fromtimestamp(max(member.modified, _EARLIEST), UTC)
    headers = {
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(_NAMESPACE, f'{archive.label}/{member.path}')}>",
        "WARC-Date": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    http = StatusAndHeaders("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(member.content)))], protocol="HTTP/1.1")
    return writer.create_warc_record(url, "response", payload=io.BytesIO(member.content), http_headers=http, warc_headers_dict=headers)
