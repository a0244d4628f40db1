"""Dataset cards in Hugging Face's format, made from what datasets and shard sets record about themselves.

A card states figures, never hopes: what went in and what was left out and why, licences and languages as counted, the mixture as
planned, and the limits that follow from how the data was made.
"""

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
import yaml

from pipelines.dataset import Dataset
from pipelines.distinct import distinct_lines
from pipelines.errors import UserError
from pipelines.lineage import upstream
from pipelines.mixture import MixturePlan
from pipelines.shardset import ShardSet

# Hugging Face's names for the number of rows (datasets-cards specification).
SIZES = (
    *(("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6)),
    *(("1M<n<10M", 1e7), ("10M<n<100M", 1e8), ("100M<n<1B", 1e9), ("n>1B", float("inf"))),
)
TOP = 20  # rows of a table of counts


def card(uri: str) -> str:
    """The card of a dataset or of a shard set, as Markdown with a YAML header.

    Raises:
        UserError: neither lies at the URI.
    """
    try:
        shards = ShardSet.open(uri)
    except UserError:
        return dataset_card(Dataset.open(uri))
    return shards_card(shards)


def dataset_card(dataset: Dataset) -> str:
    """The card of one dataset."""
    languages, licences, hosts = (_counts([dataset], column) for column in ("language", "license", "host"))
    body = [f"# {dataset.name}", f"{dataset.rows:,} documents, kept of {dataset.rows_in:,} by the stage `{dataset.meta['stage']}`."]
    body += _history(dataset)
    if dataset.reasons:
        body += ["## Left out", _table(("reason", "documents"), list(dataset.reasons.items()))]
    if dataset.meta["config"]:
        body += ["## Configuration", f"```json\n{json.dumps(dataset.meta['config'], indent=1, ensure_ascii=False)}\n```"]
    for title, counts in (("Languages", languages), ("Licences", licences), ("Hosts", hosts)):
        if counts:
            body += [f"## {title}", _table((title.lower(), "documents"), counts[:TOP]), *_rest(counts)]
    if "text" in _names(dataset):
        lines = distinct_lines(dataset)
        body += ["## Repetition", f"{lines.total:,} lines, about {lines.distinct:,} of them different (HyperLogLog, standard error 0.8 %)."]
    body += ["## Known limits", _limits(licences, synthetic="generator" in _names(dataset), text="language" in _names(dataset))]
    body += [f"Digest `{dataset.digest}`, Gristmill {dataset.meta['code_version']}."]
    return _header(dataset.name, dataset.rows, languages, licences, synthetic="generator" in _names(dataset)) + "\n\n".join(body) + "\n"


def shards_card(shards: ShardSet) -> str:
    """The card of a shard set: its sources, its mixture, its tokens."""
    datasets = {name: Dataset.open(shards.dataset_uri(name)) for name in shards.sources if Dataset.exists(shards.dataset_uri(name))}
    languages, licences = (_counts(list(datasets.values()), column) for column in ("language", "license"))
    documents = {name: [sum(shard.documents for shard in shards.shards(name, split)) for split in ("train", "validation")] for name in shards.sources}
    total = sum(map(sum, documents.values()))
    made = any("generator" in _names(dataset) for dataset in datasets.values())
    rows = [(name, shards.source(name)["dataset"]["name"], *documents[name], shards.tokens[name]) for name in shards.sources]
    tokenizer = shards.manifest["tokenizer"]
    body = [
        f"# {shards.name}",
        f"{sum(shards.tokens.values()):,} training tokens of {total:,} documents as Megatron `.bin/.idx`, {shards.dtype.name}, "
        f"vocabulary {tokenizer['vocab_size']:,}; every document ends with token {tokenizer['eos']}.",
        "## Sources",
        _table(("source", "dataset", "documents", "held out", "tokens"), rows),
        "## Mixture",
        *_mixture(shards.plan),
    ]
    for name, dataset in datasets.items():
        body += [f"## Where {name} comes from", *_history(dataset, heading=False)]
    for title, counts in (("Languages", languages), ("Licences", licences)):
        if counts:
            body += [f"## {title}", "Of the sources' documents:", _table((title.lower(), "documents"), counts[:TOP]), *_rest(counts)]
    body += ["## Known limits", _limits(licences, synthetic=made, text=bool(languages))]
    body += [f"Digest `{shards.manifest['dataset_digest']}`, plan `{shards.plan.digest}`, tokenizer `{tokenizer['digest']}`."]
    return _header(shards.name, total, languages, licences, synthetic=made) + "\n\n".join(body) + "\n"


def _header(name: str, rows: int, languages: list[tuple[str, int]], licences: list[tuple[str, int]], synthetic: bool) -> str:
    size = next(label for label, limit in SIZES if rows < limit)
    known = [licence for licence, _ in licences if licence != "unknown"]
    values: dict[str, Any] = {"pretty_name": name, "license": known[0].lower() if len(licences) == len(known) == 1 else "other"}
    values["license_name"] = "see the section Licences"
    if codes := [language for language, _ in languages if language != "unknown"]:
        values["language"] = codes
    values |= {"size_categories": [size], "task_categories": ["text-generation"], "tags": ["gristmill", *(["synthetic"] if synthetic else [])]}
    if values["license"] != "other":
        del values["license_name"]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n\n"


def _history(dataset: Dataset, heading: bool = True) -> list[str]:
    line = [dataset, *upstream(dataset)]
    rows = [(place.name, place.meta["stage"], place.rows_in, place.rows, place.rejected_rows) for place in line]
    reasons = [f"`{reason}` {count:,} ({place.name})" for place in line for reason, count in list(place.reasons.items())[:5]]
    files = [entry["name"] for place in line for entry in place.meta["inputs"] if "bytes" in entry]
    parts = [*(["## History"] if heading else []), _table(("dataset", "stage", "rows in", "kept", "left out"), rows)]
    if reasons:
        parts.append(f"Most frequent reasons to leave: {', '.join(reasons)}.")
    if files:
        parts.append(f"Read from {len(files):,} files: {', '.join(files[:5])}{', ...' if len(files) > 5 else ''}.")
    return parts


def _mixture(planned: MixturePlan) -> list[str]:
    shape = f"{planned.steps:,} steps of {planned.batch_size} sequences of {planned.sequence_length} tokens"
    parts = [f"{planned.tokens:,} tokens in {shape} ({planned.packing})."]
    for number, phase in enumerate(planned.phases, 1):
        total = sum(share.tokens for share in phase.shares)
        rows = [(share.source, f"{share.tokens / total:.2%}", share.tokens, f"{share.epochs:.2f}") for share in phase.shares]
        parts += [f"Phase {number}, {phase.steps:,} steps:", _table(("source", "share", "tokens", "epochs"), rows)]
    return parts


def _limits(licences: list[tuple[str, int]], synthetic: bool, text: bool) -> str:
    total = sum(count for _, count in licences)
    unknown = dict(licences).get("unknown", 0)
    limits = []
    if licences:
        limits.append(f"The licence of {unknown / max(total, 1):.0%} of the documents is unknown; a page's text belongs to its publisher.")
    if text:
        limits.append("Languages and quality were judged by classifiers and rules, which err more on short, mixed and rare-language pages.")
    if synthetic:
        limits.append("Synthetic documents were accepted by verifiers that check answers, not every step that leads to them.")
    limits.append("Personal data may remain; documents can be removed with `gristmill forget`.")
    return "\n".join(f"- {limit}" for limit in limits)


def _counts(datasets: Sequence[Dataset], column: str) -> list[tuple[str, int]]:
    """Values of a column by documents, most frequent first; empty if no dataset has it."""
    tables = [dataset.scan().select(pl.col(column).cast(pl.String)) for dataset in datasets if column in _names(dataset)]
    if not tables:
        return []
    values = pl.concat(tables).select(pl.col(column).fill_null("unknown").replace("", "unknown"))
    return values.group_by(column).len().sort("len", column, descending=[True, False]).collect().rows()


def _names(dataset: Dataset) -> list[str]:
    return dataset.scan().collect_schema().names()


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in rows:
        lines.append("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def _rest(counts: list[tuple[str, int]]) -> list[str]:
    return [f"And {len(counts) - TOP:,} more."] if len(counts) > TOP else []
