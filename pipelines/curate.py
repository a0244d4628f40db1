"""Curation: crawl files -> the documents worth training on, and every other record with the reason it left.

    read -> URL -> extract -> language -> signals -> rules

A record leaves at the first step that refuses it; its row says which rule ("family.rule"), on which value, against which
bound. What was measured is kept beside the text (`signals`), so thresholds can be changed later without reading a page
again (`pipelines.select`).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from filters import datatrove_filters
from filters.expressions import OwnRule, own_rule
from filters.families import FAMILIES
from filters.language import detect
from filters.licence import CLASSES, licence_class
from filters.pii import STAND_INS, find_pii, mask_pii
from filters.rules import Bound, Rule, decide
from filters.signals import SIGNAL_TYPE
from filters.urls import UrlRules, host_of
from pipelines.cluster import Cluster
from pipelines.dataset import DOCUMENT_SCHEMA, Dataset
from pipelines.errors import UserError
from pipelines.extract import extract
from pipelines.extract.page import tidy
from pipelines.measure import SPANS, Measures, UrlLists, measured
from pipelines.progress import Progress, silent
from pipelines.read import Record, datatrove_readers, plan_parts, records
from pipelines.read.parts import PART_BYTES
from pipelines.read.record import MAX_BODY
from pipelines.recipe import Recipe
from pipelines.stage import PartOutput, Stage, run_stage

# extraction: the pass that gave the text; damage: why a record is not whole (`pipelines.read.Record`).
_PAGE = [("canonical_url", pa.string()), ("charset", pa.string()), ("extraction", pa.string()), ("damage", pa.string())]
_PAGE += [("license_class", pa.string()), ("pii", SPANS), ("edits", SPANS)]  # finds in the text as stored; what line edits took from it as extracted
KEPT_SCHEMA = pa.schema([*DOCUMENT_SCHEMA, *[pa.field(name, kind) for name, kind in _PAGE], pa.field("signals", SIGNAL_TYPE)])
REJECTED_SCHEMA = pa.schema([*KEPT_SCHEMA, pa.field("reason", pa.string()), pa.field("detail", pa.string())])
BATCH_ROWS, BATCH_CHARACTERS = 128, 8 << 20  # what a part holds in memory at once
_DATE = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)(?:[T ]?(\d\d):?(\d\d):?(\d\d)?)?")


class Threshold(Recipe):
    """A rule's bound in a recipe; both ends open switches the rule off."""

    min: float | None = None
    max: float | None = None


class OwnRuleText(Recipe):
    """A rule of the recipe's own: a page stays where the expression holds (see `filters.expressions`)."""

    name: str = Field(description='"family.rule", the reason of the pages it refuses')
    keep: str = Field(description="comparisons of signals, numbers and their sums and products, joined by and, or, not")

    @model_validator(mode="after")
    def _parses(self) -> "OwnRuleText":
        if any(rule.reason == self.name for family in FAMILIES.values() for rule in family):
            raise ValueError(f"rule {self.name} exists already; set its threshold, or take another name")
        self.parsed()
        return self

    def parsed(self) -> OwnRule:
        return own_rule(self.name, self.keep, SIGNAL_TYPE.names)


class DatatroveStep(Recipe):
    """One of datatrove's own filters, by class name and arguments."""

    filter: str
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _loads(self) -> "DatatroveStep":
        datatrove_filters.load(self.filter, self.params)
        return self


class DatatroveReader(Recipe):
    """One of datatrove's own readers of files, by class name and arguments."""

    reader: str
    params: dict[str, Any] = {}
    html: bool = Field(False, description="its documents' text is HTML still to be extracted, as WarcReader's is")

    @model_validator(mode="after")
    def _builds(self) -> "DatatroveReader":
        datatrove_readers.check(self.reader, self.params)
        return self


class CurateRecipe(Recipe):
    """What is kept of a crawl. The defaults are the families' published thresholds."""

    families: tuple[str, ...] = Field(
        ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb"), description="rule families, in the order in which they are applied"
    )
    rules: tuple[OwnRuleText, ...] = Field(
        (), description='rules of your own over the signals, applied after the families: {name: my.rule, keep: "digits <= 0.2 and words >= 30"}'
    )
    thresholds: dict[str, Threshold] = Field({}, description='bounds that replace published ones, by "family.rule" or "family"')
    datatrove_reader: DatatroveReader | None = Field(
        None, description="read the input files with a datatrove reader: {reader: CLASS, params: {...}, html: false}; files are then not split"
    )
    datatrove: tuple[DatatroveStep, ...] = Field((), description="datatrove filters applied after the families, in order: {filter: CLASS, params: {...}}")
    languages: tuple[str, ...] = Field((), description="lid.176 codes to keep; empty keeps every language")
    licenses: tuple[Literal[*CLASSES], ...] = Field((), description="licence classes to keep (see license_class); empty keeps every page")
    mask: tuple[Literal[*STAND_INS], ...] = Field(("emails", "ips"), description="personal data replaced by stand-ins, as FineWeb does")
    measures: Measures = Field(Measures(), description="line edits, and the lists and models that some families need")
    urls: UrlLists = Field(UrlLists(), description="block lists of domains, addresses and words, by URI")
    block_domains: tuple[str, ...] = Field((), description="domains whose pages, and whose subdomains' pages, are refused")
    block_words: tuple[str, ...] = Field((), description="words of which one in a URL refuses its page")
    max_body: int = Field(MAX_BODY, gt=0, description="bytes of an inflated body beyond which a page is refused unread")
    part_bytes: int = Field(PART_BYTES, ge=65_536, description="stored bytes of input a part")

    @field_validator("families")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in FAMILIES]:
            raise ValueError(f"no rule family {unknown[0]}; known: {', '.join(FAMILIES)}")
        return names

    @model_validator(mode="after")
    def _measurable(self) -> "CurateRecipe":
        if problem := self.measures.problem(self.families):
            raise ValueError(problem)
        return self

    @field_validator("thresholds")
    @classmethod
    def _exists(cls, thresholds: dict[str, Threshold]) -> dict[str, Threshold]:
        known = set(FAMILIES) | {rule.reason for family in FAMILIES.values() for rule in family}
        if unknown := [name for name in thresholds if name not in known]:
            raise ValueError(f"no rule {unknown[0]} to set a threshold of")
        return thresholds

    def tables(self) -> list[tuple[Rule | OwnRule, ...]]:
        """The families in their order, then the recipe's own rules."""
        return [*(FAMILIES[name] for name in self.families), tuple(rule.parsed() for rule in self.rules)]

    def bounds(self) -> dict[str, Bound]:
        return {name: Bound(threshold.min, threshold.max) for name, threshold in self.thresholds.items()}


def curate(
    inputs: Sequence[str], recipe: CurateRecipe, out: str, cluster: Cluster | None = None, progress: Progress = silent, name: str | None = None
) -> Dataset:
    """Curate crawl files (see `pipelines.crawl.sources.resolve`) into a dataset at `out`; finishes an interrupted run.

    Raises:
        UserError: an input is missing or of no known kind, or `out` belongs to another run.
    """
    return run_stage(STAGE, inputs, recipe, out, cluster=cluster, progress=progress, name=name)


def _plan(inputs: Sequence[str], recipe: CurateRecipe) -> list[dict[str, Any]]:
    return plan_parts(inputs, recipe.part_bytes, whole=recipe.datatrove_reader is not None)


def _run(payload: dict[str, Any], recipe: CurateRecipe, output: PartOutput) -> None:
    try:
        urls = [UrlRules.of(domains=recipe.block_domains, hard=recipe.block_words), recipe.urls.load()]
    except ValueError as error:
        raise UserError(str(error)) from None
    for rows in _batches(_read(payload, recipe, urls)):
        kept, rejected = judge(rows, recipe)
        output.read(len(rows))
        output.write(kept, rejected)
        output.count(**Counter(f"damage_{row['damage'].replace(':', '_')}" for row in rows if row["damage"]))
        if kept.num_rows:
            output.count(**{name: pc.sum(pc.struct_field(kept["signals"], name)).as_py() for name in ("words", "characters")})


STAGE = Stage(name="curate", version=2, plan=_plan, run=_run)


def _read(payload: dict[str, Any], recipe: CurateRecipe, urls: Sequence[UrlRules]) -> Iterator[dict[str, Any]]:
    """A row a record: document columns, and `reason` where it is refused already."""
    for record in _records(payload, recipe):
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
        row.update(title=page.title, license=page.license, canonical_url=page.canonical_url, charset=page.charset, extraction=page.method)
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


def judge(rows: list[dict[str, Any]], recipe: CurateRecipe) -> tuple[pa.Table, pa.Table]:
    """Language, signals and rules over extracted rows: (kept, rejected)."""
    alive = [row for row in rows if not row["reason"]]
    texts = [row["text"] for row in alive]
    languages, scores = detect(texts)
    result = measured(texts, [row["pii"] for row in alive], languages, scores, recipe.measures, recipe.families)
    signals = result.signals
    reasons, details = verdicts(signals, languages, [row["license_class"] for row in alive], recipe)
    for index, row in enumerate(alive):
        if result.edits[index]:
            row.update(text=result.texts[index], edits=result.edits[index], pii=find_pii(result.texts[index]))
        row.update(language=languages[index], language_score=float(scores[index]), measured=index, reason=reasons[index], detail=details[index])
    staying = [row for row in alive if not row["reason"]]
    for row, (reason, detail) in zip(staying, datatrove_verdicts(staying, recipe), strict=True):
        row.update(reason=reason, detail=detail)
    kept, rejected = [row for row in rows if not row["reason"]], [row for row in rows if row["reason"]]
    return _table(kept, signals, KEPT_SCHEMA), _table(rejected, signals, REJECTED_SCHEMA)


def verdicts(signals: pa.StructArray, languages: Sequence[str], licences: Sequence[str | None], recipe: CurateRecipe) -> tuple[list[str], list[str]]:
    """(reason, "" where kept; detail) of measured rows, by the recipe's languages, licence classes, families and own rules."""
    _, reasons, details = decide(signals, languages, recipe.tables(), recipe.bounds())
    if recipe.languages:
        for row, language in enumerate(languages):
            if language not in recipe.languages:
                reasons[row], details[row] = "language.unwanted", f"{language}, wanted {' '.join(recipe.languages)}"
    if recipe.licenses:
        for row, licence in enumerate(licences):
            if licence not in recipe.licenses and not reasons[row]:
                reasons[row], details[row] = "license.unwanted", f"{licence}, wanted {' '.join(recipe.licenses)}"
    return reasons, details


def datatrove_verdicts(rows: Sequence[dict[str, Any]], recipe: CurateRecipe) -> list[tuple[str, str]]:
    """(reason, detail) of rows with id, text, url and language, by the first of the recipe's datatrove filters that drops them."""
    found = [("", "")] * len(rows)
    for step in recipe.datatrove:
        staying = [place for place, (reason, _) in enumerate(found) if not reason]
        judged = datatrove_filters.judge(datatrove_filters.load(step.filter, step.params), [rows[place] for place in staying])
        for place, verdict in zip(staying, judged, strict=True):
            found[place] = verdict
    return found


def _table(rows: list[dict[str, Any]], signals: pa.StructArray, schema: pa.Schema) -> pa.Table:
    """Rows as columns; `measured` is a row's place in `signals`, absent where nothing was measured."""
    columns = []
    for field in schema:
        if field.name == "signals":
            columns.append(signals.take(pa.array([row.get("measured") for row in rows], pa.int64())))
        else:
            columns.append(pa.array([_storable(row[field.name]) for row in rows], field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _storable(value: Any) -> Any:
    """Lone surrogates (a hostile URL, a JSON escape) have no UTF-8 form; they become "?". Spans become mappings."""
    if isinstance(value, list):
        return [span._asdict() for span in value]
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def captured_at(date: str) -> str:
    """ISO 8601 in UTC to the second from a WARC, ARC or JSON date; "" if there is none to be read."""
    match = _DATE.match(date.strip())
    if not match:
        return ""
    year, month, day, *clock = match.groups()
    hour, minute, second = (part or "00" for part in clock)
    plausible = 1990 <= int(year) <= 2100 and 1 <= int(month) <= 12 and 1 <= int(day) <= 31 and int(hour) < 24 and int(minute) < 60 and int(second) <= 60
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}Z" if plausible else ""
