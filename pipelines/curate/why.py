"""Why a page was kept or refused: what every stage said of it, and on which values.

The rejected rows hold a reason each, the signals hold the values; together with the stage's recorded configuration every
decision of curation can be shown again - also those of rules after the one that refused the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from filters.rules import Decision
from filters.rules import explain as explain_rules
from pipelines.curate.recipe import CurateRecipe
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.recipe import load_recipe

_ABOUT = ("id", "url", "title", "language", "language_score", "source", "offset", "length", "reason", "detail", "duplicate_of", "cluster_id", "cluster_size")
_RULED = ("curate", "select")  # stages whose configuration is a CurateRecipe


@dataclass(frozen=True)
class Fate:
    """What one stage did with one record. `decisions` are in the order in which the rules are applied; a page that never
    got as far as signals has none."""

    dataset: str
    stage: str
    kept: bool
    reason: str
    detail: str
    row: dict[str, Any]
    decisions: list[Decision] = field(default_factory=list)


def explain(needle: str, datasets: Sequence[str]) -> list[Fate]:
    """The fates, in the datasets given (in their order), of every record with this id or URL.

    Raises:
        UserError: no dataset knows it.
    """
    fates = [fate for uri in datasets for fate in _fates(needle, Dataset.open(uri))]
    if not fates:
        raise UserError(f"{needle}: no record with this id or URL in {', '.join(datasets) or 'no dataset'}")
    return fates


def _fates(needle: str, dataset: Dataset) -> list[Fate]:
    found = []
    for kept, frame in ((True, dataset.scan()), (False, dataset.scan_rejected())):
        columns = frame.collect_schema().names()
        if "id" not in columns:
            continue
        wanted = [column for column in (*_ABOUT, "signals") if column in columns]
        keys = [pl.col(key) == needle for key in ("id", "url", "canonical_url") if key in columns]
        for row in frame.filter(pl.any_horizontal(keys)).select(wanted).collect().iter_rows(named=True):
            signals = row.pop("signals", None)
            stage = dataset.meta["stage"]
            decisions = _decisions(dataset, signals, row.get("language") or "") if signals and stage in _RULED else []
            found.append(Fate(dataset.uri, stage, kept, row.get("reason") or "", row.get("detail") or "", row, decisions))
    return found


def _decisions(dataset: Dataset, signals: dict[str, Any], language: str) -> list[Decision]:
    recipe = load_recipe(CurateRecipe, dataset.meta["config"])
    decisions = explain_rules(signals, language, recipe.tables(), recipe.bounds())
    if recipe.languages:
        wanted = " ".join(recipe.languages)
        decisions.insert(0, Decision("language.unwanted", "language", None, wanted, language in recipe.languages))
    return decisions
