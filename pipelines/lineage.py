"""Where a token comes from: training step -> span -> document -> duplicates, signals, decisions -> WARC record, or generator.

Nothing is stored for this. The order of training is computed, the sidecars name the documents, and every `dataset.json` names
the datasets it was made of; following those leads from a batch to the byte range of a crawl, or to the model, the task and the
problem that a synthetic document was made from. And back: which steps read a document.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.loader import Span, TokenStream
from pipelines.loader.supply import saved_plan
from pipelines.shardset import ShardSet

# Columns of a document by what they answer; the others are shown as facts. Text and messages are cut to an excerpt.
RECORD = ("source", "offset", "length", "url", "captured_at", "license", "digest")
CLUSTER = ("cluster_id", "cluster_size")
MADE_BY = ("generator", "task", "prompt_digest", "verified", "sampling", "problem_id", "problem")
LONG = ("text", "messages", "question", "reasoning")
EXCERPT = 200


@dataclass(frozen=True)
class Station:
    """A dataset the document passed; `changed` if it is no longer the one that was read then, `found` if it is still there."""

    name: str
    stage: str
    uri: str
    digest: str
    found: bool = True
    changed: bool = False


@dataclass(frozen=True)
class Document:
    """What is known of a document. Empty mappings where a question does not apply."""

    id: str
    stations: tuple[Station, ...]
    """The datasets that held it, from the one that was tokenized back to the first, and the file it was read from."""
    record: dict[str, Any]
    cluster: dict[str, Any]
    made_by: dict[str, Any]
    signals: dict[str, Any]
    decisions: Any
    facts: dict[str, Any]
    parents: tuple["Document", ...] = ()


@dataclass(frozen=True)
class TracedSpan:
    """A span of the sequence, its text, and its document (None if its dataset is gone: `missing` says what)."""

    span: Span
    text: str
    document: Document | None
    missing: str = ""


@dataclass(frozen=True)
class Trace:
    """The answer to `gristmill trace`; `rich` prints it as a tree."""

    shards: str
    step: int
    sample: int
    spans: tuple[TracedSpan, ...]
    token: int | None = None
    token_text: str = ""

    def __rich__(self) -> Any:
        from pipelines.lineage_tree import tree

        return tree(self)


def trace(
    shards: str | ShardSet, step: int, sample: int, token: int | None = None, *, split: Literal["train", "validation"] = "train", plan: str = ""
) -> Trace:
    """The chain from a training sequence to the records it was made of.

    Args:
        sample: row of the global batch of `step`.
        token: only the document under this position of the sequence.
        plan: digest of the plan that the run followed, where it is not the shards' present one.

    Raises:
        UserError: no shards, no such plan, or the step, row or position does not exist.
    """
    stream = _stream(shards, plan, split)
    spans = stream.provenance(step, sample)
    text = ""
    if token is not None:
        spans = [span for span in spans if span.position <= token < span.position + span.length]
        if not spans:
            raise UserError(f"position {token} of step {step}, sample {sample} holds no token (padding, or beyond {stream.length})")
        text = _decode(stream, spans[0], token - spans[0].position, 1)
    ids: dict[str, list[str]] = {}
    for span in spans:
        ids.setdefault(span.source, []).append(span.document_id)
    found = {source: _documents(stream.shards, source, wanted) for source, wanted in ids.items()}
    traced = []
    for span in spans:
        documents, missing = found[span.source]
        traced.append(TracedSpan(span, _decode(stream, span, 0, span.length), documents.get(span.document_id), missing))
    return Trace(stream.shards.uri, step, sample, tuple(traced), token, text)


def describe(dataset: Dataset | str, ids: Sequence[str]) -> dict[str, Document]:
    """What is known of documents of a dataset, with their parents up to the first; unknown ids are left out."""
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    return _describe(dataset, ids, seen=frozenset())


@dataclass(frozen=True)
class Reading:
    """A place in training where a document was read."""

    source: str
    document_id: str
    epoch: int
    step: int
    sample: int


def readings(shards: str | ShardSet, ids: Iterable[str], *, until: int | None = None, plan: str = "") -> Iterator[Reading]:
    """Every place of the plan where documents are read, before step `until` if given: the inverse of `trace`.

    The shuffle is inverted, not searched: the cost is that of finding the documents in the sidecars.
    """
    stream = _stream(shards, plan)
    wanted = set(ids)
    for name in stream.sources:
        for number, shard in enumerate(stream.shards.shards(name)):
            for index, identity in enumerate(shard.ids):
                if identity in wanted:
                    for epoch, step, sample in stream.places(name, number, index):
                        if until is None or step < until:
                            yield Reading(name, identity, epoch, step, sample)


def ids_of(shards: str | ShardSet, *, url: str | None = None, host: str | None = None) -> list[str]:
    """Ids of the documents of a URL or host, in the datasets a shard set was made of.

    Raises:
        UserError: neither is given.
    """
    if url is None and host is None:
        raise UserError("give a URL or a host to look for")
    shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
    found: list[str] = []
    for source in shards.sources:
        rows = Dataset.open(shards.dataset_uri(source)).scan()
        for column, value in (("url", url), ("host", host)):
            if value is not None and column in rows.collect_schema():
                found += rows.filter(pl.col(column) == value).select("id").collect()["id"].to_list()
    return list(dict.fromkeys(found))


def upstream(dataset: Dataset) -> list[Dataset]:
    """Every dataset that a dataset was made of and that is still there, nearest first."""
    return [place for place, _ in _upstream(dataset)]


def _stream(shards: str | ShardSet, plan: str, split: Literal["train", "validation"] = "train") -> TokenStream:
    shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
    return TokenStream(shards, split=split, plan=saved_plan(shards, plan) if plan else None)


def _documents(shards: ShardSet, source: str, ids: Sequence[str]) -> tuple[dict[str, Document], str]:
    uri = shards.dataset_uri(source)
    if not Dataset.exists(uri):
        return {}, f"the dataset {shards.source(source)['dataset']['name']} is not at {uri} any more"
    return describe(Dataset.open(uri), ids), f"not in {uri} any more"


def _describe(dataset: Dataset, ids: Sequence[str], seen: frozenset[str]) -> dict[str, Document]:
    rows = _rows(dataset, ids)
    passed = _passed(dataset, list(rows))
    described = {}
    for identity, row in rows.items():
        parents = [parent for parent in row.pop("parents", None) or () if parent not in seen and parent != identity]
        described[identity] = Document(
            id=identity,
            stations=tuple(station for station, holds in passed if holds(identity, row.get("source"))),
            record=_take(row, RECORD),
            cluster=_take(row, CLUSTER),
            made_by=_take(row, MADE_BY),
            signals=row.pop("signals", None) or {},
            decisions=row.pop("decisions", None),
            facts={key: _cut(value) if key in LONG else value for key, value in row.items() if key != "id" and value is not None},
            parents=tuple(_ancestors(dataset, parents, seen | {identity})),
        )
    return described


def _ancestors(dataset: Dataset, ids: Sequence[str], seen: frozenset[str]) -> Iterator[Document]:
    """Documents by id among the dataset itself and everything it was made of, nearest first."""
    left = list(dict.fromkeys(ids))
    for place in [dataset, *upstream(dataset)]:
        if not left:
            return
        found = _describe(place, left, seen)
        yield from (found[identity] for identity in left if identity in found)
        left = [identity for identity in left if identity not in found]
    for identity in left:
        yield Document(identity, (), {}, {}, {}, {}, None, {"missing": "in no dataset upstream"})


def _rows(dataset: Dataset, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    rows = dataset.scan()
    if not ids or "id" not in rows.collect_schema():
        return {}
    return {row["id"]: row for row in rows.filter(pl.col("id").is_in(list(set(ids)))).collect().to_dicts()}


def _passed(dataset: Dataset, ids: Sequence[str]) -> list[tuple[Station, Callable[[str, str | None], bool]]]:
    """Every station upstream, and whether a document (by id and source file) passed it: side inputs and other files did not hold it."""
    stations = []
    for place, entry in [(dataset, None), *_upstream(dataset, missing=True)]:
        if place is None:
            is_file = "bytes" in entry
            station = Station(entry["name"], "file" if is_file else "gone", entry["uri"], entry.get("digest", ""), found=is_file)
            stations.append((station, lambda _, source, name=entry["name"], is_file=is_file: not is_file or source == name))
        else:
            changed = entry is not None and place.digest != entry["digest"]
            held = frozenset(_ids(place, ids))
            station = Station(place.name, place.meta["stage"], place.uri, place.digest, changed=changed)
            stations.append((station, lambda identity, _, held=held: identity in held))
    return stations


def _ids(dataset: Dataset, ids: Sequence[str]) -> list[str]:
    rows = dataset.scan()
    if "id" not in rows.collect_schema():
        return []
    return rows.select("id").filter(pl.col("id").is_in(list(set(ids)))).collect()["id"].to_list()


def _upstream(dataset: Dataset, missing: bool = False) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every dataset this one was made of, breadth first, each once; with `missing`, files and vanished ones as None."""
    pending, seen = [dataset], {dataset.uri}
    while pending:
        here = pending.pop(0)
        for entry in here.meta["inputs"]:
            uri = _locate(entry, here.uri)
            if (uri or entry["uri"]) in seen:
                continue
            seen.add(uri or entry["uri"])
            place = Dataset.open(uri) if uri else None
            if place is not None:
                pending.append(place)
            if place is not None or missing:
                yield place, entry


def _locate(entry: dict[str, Any], beside: str) -> str | None:
    """A recorded input: beside the dataset that names it if it is there unchanged (runs are moved and copied whole), else
    where it was."""
    uri = entry["uri"].rstrip("/")
    if "://" not in uri and "://" not in beside:
        sibling = os.path.join(os.path.dirname(beside), os.path.basename(uri))
        if Dataset.exists(sibling) and (Dataset.open(sibling).digest == entry.get("digest") or not Dataset.exists(uri)):
            return sibling
    return uri if Dataset.exists(uri) else None


def _decode(stream: TokenStream, span: Span, start: int, length: int) -> str:
    shard = next(shard for shard in stream.shards.shards(span.source, stream.split) if shard.prefix == span.shard)
    first = span.doc_offset + start
    return stream.shards.tokenizer.decode(shard.document(span.document)[first : first + length].tolist(), skip_special_tokens=False)


def _take(row: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key in keys if (value := row.pop(key, None)) is not None}


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else "\n".join(f"{message['role']}: {message['content']}" for message in value)
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
