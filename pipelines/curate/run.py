"""Curation: crawl files -> the documents worth training on, and every other record with the reason it left.

    read -> URL -> extract -> language -> signals -> rules

A record leaves at the first step that refuses it; its row says which rule ("family.rule"), on which value, against which
bound. What was measured is kept beside the text (`signals`), so thresholds can be changed later without reading a page
again (`pipelines.curate.select`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow.compute as pc

from filters.licence import licence_class
from filters.pii import mask_pii
from filters.urls import UrlRules, host_of
from pipelines.cluster import Cluster
from pipelines.curate.judge import judge
from pipelines.curate.recipe import CurateRecipe
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.extract import extract
from pipelines.extract.page import tidy
from pipelines.progress import Progress, silent
from pipelines.read import Record, datatrove_readers, plan_parts, records
from pipelines.stage import PartOutput, Stage, run_stage

BATCH_ROWS, BATCH_CHARACTERS = 128, 8 << 20  # what a part holds in memory at once
_DATE = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)(?:[T ]?(\d\d):?(\d\d):?(\d\d)?)?")


def curate(
    inputs: Sequence[str], recipe: CurateRecipe, out: str, cluster: Cluster | None = None, progress: Progress = silent, name: str | None = None
) -> Dataset:
    """Curate crawl files (see `pipelines.crawl.sources.resolve`) into a dataset at `out`; finishes an interrupted run.

    Raises:
        UserError: an input is missing or of no known kind, a list or model that the recipe names cannot be read, or `out` belongs to another run.
    """
    try:
        recipe = recipe.pinned()
    except ValueError as error:
        raise UserError(str(error)) from None
    return run_stage(STAGE, inputs, recipe, out, cluster=cluster, progress=progress, name=name)


def _plan(inputs: Sequence[str], recipe: CurateRecipe) -> list[dict[str, Any]]:
    return plan_parts(inputs, recipe.part_bytes, whole=recipe.datatrove_reader is not None)


def _run(payload: dict[str, Any], recipe: CurateRecipe, output: PartOutput) -> None:
    try:
        urls = [UrlRules.of(domains=recipe.block_domains, hard=recipe.block_words), recipe.urls.load()]
    except ValueError as error:
        raise UserError(str(error)) from None
    for rows in _batches(rows_of(_records(payload, recipe), recipe, urls)):
        kept, rejected = judge(rows, recipe)
        output.read(len(rows))
        output.write(kept, rejected)
        output.count(**Counter(f"damage_{row['damage'].replace(':', '_')}" for row in rows if row["damage"]))
        if kept.num_rows:
            output.count(**{name: pc.sum(pc.struct_field(kept["signals"], name)).as_py() for name in ("words", "characters")})


STAGE = Stage(name="curate", version=2, plan=_plan, run=_run)


def rows_of(records: Iterable[Record], recipe: CurateRecipe, urls: Sequence[UrlRules]) -> Iterator[dict[str, Any]]:
    """A row a record: document columns, and `reason` where it is refused already."""
    for record in records:
        row = _row(record)
        if not row["reason"]:
            row["reason"], row["detail"] = next(filter(any, (rules.judge(record.url) for rules in urls)), ("", ""))
        if not row["reason"]:
            _extract(row, record, recipe)
        yield row


def _records(payload: dict[str, Any], recipe: CurateRecipe) -> Iterator[Record]:
    if not (theirs := recipe.datatrove_reader):
        yield from records(payload, recipe.max_body)
        return
    for piece in payload["pieces"]:
        yield from datatrove_readers.read_documents(theirs.reader, theirs.params, piece["uri"], theirs.html, recipe.max_body)


def _row(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "text": "",
        "url": record.url,
        "host": host_of(record.url),
        "title": str(record.columns.get("title") or ""),
        "captured_at": captured_at(record.date),
        "language": "",
        "language_score": 0.0,
        "license": "",
        "source": record.source,
        "offset": record.offset,
        "length": record.length,
        "digest": record.digest,
        "canonical_url": "",
        "charset": "",
        "extraction": "",
        "damage": record.damage,
        "license_class": "",
        "pii": [],
        "edits": [],
        "reason": record.reason,
        "detail": record.detail,
    }


def _extract(row: dict[str, Any], record: Record, recipe: CurateRecipe) -> None:
    if record.text is not None:
        text, row["extraction"], failure = tidy(record.text), "plain", ""
    else:
        page = extract(record.body, record.url, record.content_type)
        text, failure = page.text, page.failure
        row.update(title=page.title, license=page.license, canonical_url=page.canonical_url, charset=page.charset, extraction="blocks")
    row["text"], row["pii"] = mask_pii(text, recipe.mask)
    row["license_class"] = licence_class(row["license"])
    if failure or not text:
        row["reason"] = f"extract.{failure or 'no_text'}"


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch, characters = [], 0
    for row in rows:
        batch.append(row)
        characters += len(row["text"])
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def captured_at(date: str) -> str:
    """ISO 8601 in UTC to the second from a WARC, ARC or JSON date; "" if there is none to be read."""
    match = _DATE.match(date.strip())
    if not match:
        return ""
    year, month, day, *clock = match.groups()
    hour, minute, second = (part or "00" for part in clock)
    plausible = 1990 <= int(year) <= 2100 and 1 <= int(month) <= 12 and 1 <= int(day) <= 31 and int(hour) < 24 and int(minute) < 60 and int(second) <= 60
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}Z" if plausible else ""
