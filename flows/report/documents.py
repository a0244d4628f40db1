"""The part of the report about pages: the funnel with its reasons, languages, duplicates, and the leak check."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from flows.report import charts
from pipelines.dataset import Dataset

STAGES = {"curated": "curate", "deduped": "dedup", "heldout/rest": "held out", "text": "leak check"}  # folder -> what it is called
REASONS_SHOWN = 40
EXAMPLE_CHARACTERS = 420
CLUSTERS_SHOWN = 4
# ISO 639 names of what web crawls mostly hold; others are shown by their code.
LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "nl": "Dutch", "ru": "Russian",
    "pl": "Polish", "cs": "Czech", "sv": "Swedish", "da": "Danish", "fi": "Finnish", "tr": "Turkish", "ja": "Japanese", "zh": "Chinese",
    "ko": "Korean", "ar": "Arabic", "hi": "Hindi", "ca": "Catalan", "ro": "Romanian", "hu": "Hungarian", "el": "Greek", "uk": "Ukrainian",
}  # fmt: skip


def funnel(folder: Path) -> list[dict[str, Any]]:
    """Each closed stage: rows in, kept, and its reasons with one example each."""
    stages = []
    for name, title in STAGES.items():
        if Dataset.exists(str(folder / name)):
            dataset = Dataset.open(str(folder / name))
            stages.append({"stage": title, "rows_in": dataset.rows_in, "kept": dataset.rows, "reasons": _reasons(dataset)})
    return stages


def _reasons(dataset: Dataset) -> list[dict[str, Any]]:
    examples = _examples(dataset)
    return [
        {"reason": reason, "count": count, "share": count / max(1, dataset.rows_in), "example": examples.get(reason)}
        for reason, count in list(dataset.reasons.items())[:REASONS_SHOWN]
    ]


def _examples(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """One rejected row a reason: the first in order that has text to show."""
    if not dataset.rejected_rows:
        return {}
    rows = dataset.scan_rejected()
    have = rows.collect_schema().names()
    cut = [
        pl.col(name).str.slice(0, EXAMPLE_CHARACTERS) if name == "text" else pl.col(name)
        for name in ("reason", "detail", "url", "title", "text")
        if name in have
    ]
    filled = pl.col("text").is_not_null() & (pl.col("text") != "") if "text" in have else pl.lit(True)
    frame = (
        rows.select(*cut, filled.alias("__filled"))
        .sort("__filled", descending=True, maintain_order=True)
        .unique("reason", keep="first", maintain_order=True)
        .collect()
    )
    blank = {"url": "", "title": "", "detail": "", "text": ""}
    return {row["reason"]: {**blank, **{key: value for key, value in row.items() if value is not None}} for row in frame.to_dicts()}


def languages(folder: Path) -> list[dict[str, Any]]:
    """Kept documents per language, most frequent first."""
    for name in ("deduped", "curated"):
        if Dataset.exists(str(folder / name)):
            rows = (
                Dataset.open(str(folder / name))
                .scan(["language"])
                .group_by("language")
                .len()
                .sort(["len", "language"], descending=[True, False])
                .collect()
                .to_dicts()
            )
            total = max(1, sum(row["len"] for row in rows))
            return [
                {"language": LANGUAGES.get(row["language"], row["language"] or "unknown"), "documents": row["len"], "share": row["len"] / total} for row in rows
            ]
    return []


def duplicates(folder: Path) -> dict[str, Any] | None:
    """Cluster sizes, kinds, and a few clusters with the pages that left."""
    if not Dataset.exists(str(folder / "deduped")):
        return None
    dataset = Dataset.open(str(folder / "deduped"))
    sizes = dataset.scan(["cluster_size"]).filter(pl.col("cluster_size") > 1).collect()["cluster_size"].to_list()
    classes = [("2", 2, 2), ("3", 3, 3), ("4–7", 4, 7), ("8–15", 8, 15), ("16+", 16, None)]
    rows = [{"label": label, "value": sum(low <= value and (high is None or value <= high) for value in sizes)} for label, low, high in classes]
    return {
        "removed": dataset.rejected_rows,
        "clusters": len(sizes),
        "kinds": [{"reason": reason, "count": count} for reason, count in dataset.reasons.items()],
        "chart": charts.histogram(rows, x="copies in a cluster", y="clusters") if sizes else None,
        "examples": _clusters(dataset) if dataset.rejected_rows else [],
    }


def _clusters(dataset: Dataset) -> list[dict[str, Any]]:
    left = dataset.scan_rejected(["url", "reason", "duplicate_of"]).collect()
    names = (
        left.group_by("duplicate_of", maintain_order=True)
        .len()
        .sort("len", descending=True, maintain_order=True)["duplicate_of"]
        .head(CLUSTERS_SHOWN)
        .to_list()
    )
    kept = {row["id"]: row for row in dataset.scan(["id", "url", "text"]).filter(pl.col("id").is_in(names)).collect().to_dicts()}
    examples = []
    for name in names:
        if name in kept:
            copies = left.filter(pl.col("duplicate_of") == name).head(3).to_dicts()
            examples.append(
                {
                    "kept": kept[name]["url"] or name,
                    "text": (kept[name]["text"] or "")[:EXAMPLE_CHARACTERS],
                    "copies": [{"url": row["url"] or "", "detail": row["reason"]} for row in copies],
                }
            )
    return examples


def leaks(folder: Path) -> dict[str, Any] | None:
    """The leak check's figures as the run wrote them."""
    path = folder / "heldout" / "leaks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
