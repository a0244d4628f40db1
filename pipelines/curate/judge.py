"""Extracted rows -> the kept and the rejected, each with what was measured of it and, where it leaves, with its reason.

The one place that judges: curation calls it with fresh texts, selection and comparison of recipes with the signals of earlier ones.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from filters import datatrove_filters
from filters.datatrove_filters import Verdict
from filters.edits import Edit
from filters.language import detect
from filters.pii import find_pii
from filters.rules import decide
from filters.signals import SIGNAL_TYPE
from pipelines.curate.measure import SPANS, measured
from pipelines.curate.recipe import CurateRecipe
from pipelines.dataset import DOCUMENT_SCHEMA

# extraction: blocks of a page chosen, or plain text as it came; damage: why a record is not whole (`pipelines.read.Record`).
_PAGE = [("canonical_url", pa.string()), ("charset", pa.string()), ("extraction", pa.string()), ("damage", pa.string())]
_PAGE += [("license_class", pa.string()), ("pii", SPANS), ("edits", SPANS)]  # finds in the text as stored; what line edits took from it as extracted
KEPT_SCHEMA = pa.schema([*DOCUMENT_SCHEMA, *[pa.field(name, kind) for name, kind in _PAGE], pa.field("signals", SIGNAL_TYPE)])
REJECTED_SCHEMA = pa.schema([*KEPT_SCHEMA, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


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
    for row, verdict in zip(staying, datatrove_verdicts(staying, recipe), strict=True):
        row.update(reason=verdict.reason, detail=verdict.detail)
        if not verdict.reason and verdict.text != row["text"]:
            row.update(edits=[*row["edits"], _between("datatrove", row["text"], verdict.text)], text=verdict.text, pii=find_pii(verdict.text))
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


def datatrove_verdicts(rows: Sequence[dict[str, Any]], recipe: CurateRecipe) -> list[Verdict]:
    """What the recipe's datatrove filters make of rows with id, text, url and language: each sees what those before it left, up to the one that drops it."""
    found = [Verdict("", "", row["text"]) for row in rows]
    for step in recipe.datatrove:
        staying = [place for place, verdict in enumerate(found) if not verdict.reason]
        left = [{**rows[place], "text": found[place].text} for place in staying]
        for place, verdict in zip(staying, datatrove_filters.judge(datatrove_filters.load(step.filter, step.params), left), strict=True):
            found[place] = verdict
    return found


def _between(kind: str, before: str, after: str) -> Edit:
    """The part of a text outside of which nothing changed."""
    start = _alike(before, after)
    return Edit(kind, start, len(before) - _alike(before[start:][::-1], after[start:][::-1]))


def _alike(one: str, other: str) -> int:
    """Characters that both begin with."""
    return next((place for place, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs), min(len(one), len(other)))


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
