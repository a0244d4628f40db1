"""The documents and the peer that the filter benchmarks share: real texts, and datatrove's own filters as their recipes build them."""

import gzip
import json
import os
from pathlib import Path

DATA = Path(os.environ.get("GRISTMILL_DATA") or Path(__file__).resolve().parents[1].parent / "shared/data")


def documents(data: Path, count: int = 0) -> list[str]:
    """Ground-truth texts of the extraction sets, and the text of the extraction and documentation crawls by our reader and extractor.

    With `count`, about so many of them, evenly spread.
    """
    from pipelines.extract import extract
    from pipelines.read import plan_parts, records
    from pipelines.read.parts import PART_BYTES
    from pipelines.read.record import MAX_BODY

    texts = []
    for name, key in (("wcxb-dev", "main_content"), ("scrapinghub-aeb", "articleBody")):
        with gzip.open(data / f"extraction/{name}.gt.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.loads(line).get(key) for line in lines]
    crawls = [data / "extraction/trafilatura-eval.warc.gz", *sorted((data / "crawl/docs-crawl").glob("*.warc.gz"))]
    found = [record for payload in plan_parts([str(crawl) for crawl in crawls], PART_BYTES) for record in records(payload, MAX_BODY) if not record.reason]
    if count:
        found = found[:: max(1, (len(found) + len(texts)) // count)]
        texts = texts[:: max(1, (len(found) + len(texts)) // count)]
    texts += [record.text if record.text is not None else extract(record.body, record.url, record.content_type).text for record in found]
    return [text for text in texts if text]


def datatrove_filters() -> dict[str, object]:
    """datatrove's filters with their default arguments, by our families' names."""
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    return {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "c4": C4QualityFilter(),
        "c4_fineweb": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
    }


def judge(step: object, text: str) -> tuple[bool, str]:
    """(kept, datatrove's word for why not)."""
    from datatrove.data import Document

    answer = step.filter(Document(text=text, id=""))
    return answer if isinstance(answer, tuple) else (bool(answer), "")
