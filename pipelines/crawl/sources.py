"""From what a person names to the files that are read: the sample, Common Crawl, files, folders, globs, any fsspec URI.

What has to be fetched is written below `out` once, with a `crawl.json` that says what it is; the same line finds it again.
"""

import functools
import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from typing import Any

from pipelines.crawl import commoncrawl
from pipelines.crawl.archives import SAMPLE
from pipelines.crawl.sample import write_sample
from pipelines.errors import UserError
from pipelines.progress import Progress, ProgressEvent, silent
from pipelines.read.parts import kind_of
from pipelines.storage import file_system, is_folder, many, size_of, told

_GLOB, _WEB_GLOB = frozenset("*?["), frozenset("*[")
_WEB = ("http://", "https://")
_KNOWN = ".warc, .wet, .arc, .html, .jsonl, .parquet, .txt, also .gz and .zst"


def resolve(source: str | Sequence[str], out: str, progress: Progress = silent, any_kind: bool = False) -> list[str]:
    """URIs of the crawl files that a source means, in a fixed order.

    Args:
        source: "sample", "commoncrawl:CRAWL?files=1&megabytes=50", a file, a folder (searched recursively for known
            extensions), a glob, any fsspec URI, or several of them.
        out: local folder for what is downloaded.
        any_kind: files of any kind will do: a reader that knows them is named elsewhere.

    Raises:
        UserError: a file is missing, nothing readable is there, or the network is needed and absent.
    """
    if not isinstance(source, str):
        found = [uri for entry in source for uri in resolve(entry, out, progress, any_kind)]
        if not found:
            raise UserError("no input given")
        return list(dict.fromkeys(found))
    if source == "sample":
        return _once(source, out, functools.partial(_sample, progress=progress))
    if source.startswith("commoncrawl:"):
        request = commoncrawl.parse(source)
        return _once(source, out, functools.partial(commoncrawl.fetch, request, progress=progress))
    return _files(source, any_kind)


def _files(source: str, any_kind: bool) -> list[str]:
    fs, path = file_system(source)
    several = "matches" if _is_glob(fs, source, path) else "is in the folder" if is_folder(source) else ""
    if several and source.startswith(_WEB):  # fsspec lists a page that it could not get as empty
        size_of(re.split(r"[*\[]", source)[0].rpartition("/")[0] + "/")
    with told(source):
        if several == "matches":
            found = [name for name, about in fs.glob(path, detail=True).items() if about["type"] != "directory"]
        else:
            found = list(fs.find(path)) if several else [path]
    if several and not any_kind:
        found = [entry for entry in found if kind_of(entry)]
    if not found:
        raise UserError(f"{source}: no file {several}{'' if any_kind else f', of the known kinds ({_KNOWN})'}")
    found = [fs.unstrip_protocol(entry) if "://" in source else entry for entry in sorted(found)]
    if not any(size or not ranged for size, ranged in many(size_of, found)):
        raise UserError(f"{source}: the input is empty")
    if not any_kind and not kind_of(found[0]):
        raise UserError(f"{source}: not a file of a known kind ({_KNOWN})")
    return found


def _is_glob(fs: Any, source: str, path: str) -> bool:
    """Whether the name means others; on the web "?" begins a query, elsewhere a file may have marks in its own name."""
    if source.startswith(_WEB):
        return not _WEB_GLOB.isdisjoint(path)
    with told(source):
        return not _GLOB.isdisjoint(path) and not fs.exists(path)


def _sample(out: str, progress: Progress) -> list[str]:
    paths = []
    for index, archive in enumerate(SAMPLE):
        progress(ProgressEvent("crawl", index, len(SAMPLE), "archives", archive.label))
        final = os.path.join(out, f"{archive.label}.warc.gz")
        temporary = os.path.join(out, f".tmp-{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as file:
                write_sample(archive, file)
            os.replace(temporary, final)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        paths.append(final)
    progress(ProgressEvent("crawl", len(SAMPLE), len(SAMPLE), "archives"))
    return paths


def _once(source: str, out: str, make) -> list[str]:
    """Run `make(out)` unless `crawl.json` says that it was done; check that what lies there is what was asked for."""
    os.makedirs(out, exist_ok=True)
    about = os.path.join(out, "crawl.json")
    if os.path.exists(about):
        with open(about, encoding="utf-8") as file:
            done = json.load(file)
        if done["source"] != source:
            raise UserError(f"{out}: output folder of another run (its crawl is {done['source']}); choose another or remove it")
        if all(os.path.exists(os.path.join(out, name)) for name in done["files"]):
            return [os.path.join(out, name) for name in done["files"]]
    paths = make(out=out)
    files = {os.path.basename(path): _describe(path) for path in paths}
    temporary = f"{about}.tmp-{uuid.uuid4().hex}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"source": source, "files": files}, file, indent=1)
    os.replace(temporary, about)
    return paths


def _describe(path: str) -> dict[str, object]:
    with open(path, "rb") as file:
        return {"bytes": os.path.getsize(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
