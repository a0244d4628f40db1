"""Main-text extraction: quality and documents a second against trafilatura and resiliparse, same pages, same run, one thread.

    python benchmarks/extraction.py [--data FOLDER] [--every 1]

WCXB development set and scrapinghub: mean word-F1 (multiset of lower-cased `\\w+`). trafilatura's own set: F1 over its with / without segments, found
as substrings after white space is normalised, counts summed over pages (as that project's tests/evaluate.py has it). Mozilla Readability's
test pages: word-F1 against the text of the expected HTML.

No program fitted our weights to any page. A person wrote the rules and chose the weights by looking at every second page of each set, those of even number, and
at the scores of the others now and then: the first half flatters us, the second less. Peers are given decoded text; our time includes charset detection and
metadata. CPU seconds of this process, extractors alternating on each page.
"""

import argparse
import gzip
import json
import os
import re
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import trafilatura
from fastwarc import ArchiveIterator, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text

from pipelines.extract import extract
from pipelines.extract.charset import decode
from pipelines.extract.layout import lay_out
from pipelines.extract.writer import write_text

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Page:
    """A page with its ground truth (a row of the set's .gt.jsonl)."""

    url: str
    body: bytes
    content_type: str | None
    truth: dict


def pages_of(data: Path, name: str) -> list[Page]:
    with gzip.open(data / f"extraction/{name}.gt.jsonl.gz", "rt", encoding="utf-8") as file:
        truth = {row["warc_uri"]: row for row in map(json.loads, file)}
    pages = []
    with open(data / f"extraction/{name}.warc.gz", "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True):
            url = record.headers["WARC-Target-URI"].strip("<>")
            if url in truth:
                pages.append(Page(url, record.reader.read(), record.http_headers.get("Content-Type"), truth[url]))
    return pages


OURS, STANDARD = "ours", "trafilatura standard"
EXTRACTORS: dict[str, Callable[[Page, str], str]] = {
    OURS: lambda page, html: extract(page.body, page.url, page.content_type).text,
    STANDARD: lambda page, html: trafilatura.extract(html, include_comments=False, include_tables=True, include_formatting=False) or "",
    "trafilatura fast": lambda page, html: trafilatura.extract(html, include_comments=False, include_tables=True, include_formatting=False, fast=True) or "",
    "resiliparse main": lambda page, html: extract_plain_text(html, main_content=True, alt_texts=False),
}


def word_f1(text: str, wanted: str) -> float:
    have, want = (Counter(WORD.findall(some.lower())) for some in (text, wanted))
    return 2 * (have & want).total() / max(have.total() + want.total(), 1)


def segment_f1(pages: Sequence[Page], texts: Sequence[str]) -> float:
    right = missed = unwanted = 0
    for page, text in zip(pages, texts, strict=True):
        flat = " ".join(text.split())
        found = sum(" ".join(segment.split()) in flat for segment in page.truth["with"])
        right, missed = right + found, missed + len(page.truth["with"]) - found
        unwanted += sum(" ".join(segment.split()) in flat for segment in page.truth["without"])
    return 2 * right / max(2 * right + missed + unwanted, 1)


TRUTH = {"wcxb-dev": "main_content", "scrapinghub-aeb": "articleBody", "readability": "text"}


def score(name: str, pages: Sequence[Page], texts: Sequence[str]) -> float:
    """A set's F1: over segments for trafilatura's own, else the mean over pages of words'; nan without pages."""
    if name == "trafilatura-eval":
        return segment_f1(pages, texts)
    each = [word_f1(text, page.truth[TRUTH[name]]) for text, page in zip(texts, pages, strict=True)]
    return float(np.mean(each)) if each else float("nan")


def readability_pages(data: Path) -> list[Page]:
    """Mozilla's pages; the truth is the text of the HTML that Readability is expected to give."""
    pages: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(data / "extraction/mozilla-readability-test-pages.tar.xz") as archive:
        for member in archive:
            if member.isfile():
                _, name, file = member.name.rsplit("/", 2)
                pages[name][file] = archive.extractfile(member).read()
    found = []
    for name, files in sorted(pages.items()):
        layout = lay_out(decode(files["expected.html"], None)[0].encode())
        found.append(Page(f"http://{name}/", files["source.html"], None, {"text": write_text(layout, np.ones(len(layout.blocks), bool))}))
    return found


def run(pages: Sequence[Page]) -> tuple[dict[str, list[str]], dict[str, float]]:
    """(texts, CPU seconds) of each extractor."""
    texts, seconds = {name: [] for name in EXTRACTORS}, dict.fromkeys(EXTRACTORS, 0.0)
    for page in pages:
        html = decode(page.body, page.content_type)[0]
        for name, extractor in EXTRACTORS.items():
            started = time.process_time()
            text = extractor(page, html)
            seconds[name] += time.process_time() - started
            texts[name].append(text)
    return texts, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA", "../shared/data")), help="folder that holds extraction/")
    parser.add_argument("--every", type=int, default=1, help="every Nth page of each set")
    arguments = parser.parse_args()
    extract(b"<p>compiled before the clock runs</p>")
    sets: dict[str, list[Page]] = {name: pages_of(arguments.data, name) for name in ("wcxb-dev", "scrapinghub-aeb", "trafilatura-eval")}
    sets["readability"] = readability_pages(arguments.data)
    kinds: dict[str, dict[str, float]] = {}
    print("| set | pages | extractor | F1 | to trafilatura standard | on pages looked at | on the others | docs/s | ratio |\n|" + "---|" * 9)
    for name, pages in sets.items():
        pages = pages[:: arguments.every]
        texts, seconds = run(pages)
        looked_at = np.arange(len(pages)) * arguments.every % 2 == 0
        parts = np.ones(len(pages), bool), looked_at, ~looked_at
        reference = score(name, pages, texts[STANDARD])
        for extractor, some in texts.items():
            scores = [score(name, [*compress(pages, part)], [*compress(some, part)]) for part in parts]
            speed = f"{len(pages) / seconds[extractor]:.0f} | {seconds[STANDARD] / seconds[extractor]:.1f}"
            halves = " | ".join(f"{half:.4f}" for half in scores[1:])
            print(f"| {name} | {len(pages)} | {extractor} | {scores[0]:.4f} | {scores[0] - reference:+.4f} | {halves} | {speed} |", flush=True)
            if name == "wcxb-dev":
                of_kind = defaultdict(list)
                for page, text in zip(pages, some, strict=True):
                    of_kind[_kind(page)].append(word_f1(text, page.truth[TRUTH[name]]))
                kinds[extractor] = {kind: float(np.mean(values)) for kind, values in sorted(of_kind.items(), key=lambda item: -len(item[1]))}
    print("\n| WCXB by kind of page | " + " | ".join(kinds[STANDARD]) + " |\n|" + "---|" * (len(kinds[STANDARD]) + 1))
    for extractor, of_kind in kinds.items():
        print(f"| {extractor} | " + " | ".join(f"{score:.3f}" for score in of_kind.values()) + " |")


def _kind(page: Page) -> str:
    kind = page.truth["page_type"]
    return re.sub(r"\W", "", kind if isinstance(kind, str) else kind["primary"])


if __name__ == "__main__":
    main()
