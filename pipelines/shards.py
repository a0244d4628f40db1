"""Mixture -> token shards: every document of every source encoded once, ended with </s>, and written as Megatron shards.

A part is a run of Parquet row groups of one source; it becomes one shard a split. Which split a document belongs to is a
hash of its id alone, so a validation document stays out of training in every mixture that will ever be made. Weights, batch
size and seed do not touch the bytes: changing them only plans anew.
"""

import hashlib
import importlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipelines import megatron
from pipelines.atomic import write_file
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset, open_part
from pipelines.errors import UserError
from pipelines.fill_in_middle import FillInMiddleEncoder
from pipelines.loader.supply import plan_over
from pipelines.mixture import Available, FillInMiddle, Mixture, MixturePlan, Source, plan
from pipelines.mixture.rows import COLUMNS, condition, described
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe
from pipelines.shardset import FORMAT, SPLITS, ShardSet, inspect, verify
from pipelines.stage import PartOutput, Stage, code_version, run_stage
from pipelines.tokenizer import encode_batch, load_tokenizer, tokenizer_digest

__all__ = ["ShardSet", "check", "estimate", "inspect", "tokenize", "verify"]

SHARD_BYTES = 256 << 20  # uncompressed Parquet a shard: a part holds it in memory as tokens, Megatron asks for few big files
BATCH_ROWS = 512
ESTIMATE_ROWS = 256
ESTIMATE_GROUPS = 8
ESTIMATE_SLACK = 1.25  # a shortfall is only certain before encoding when the estimate is this far below the need

Encoded = tuple[list[list[int] | ValueError], list[list[int] | None]]
ChatEncoder = Callable[[Tokenizer, Sequence[dict[str, str]]], tuple[list[int], list[int]]]


class SourceBytes(Recipe):
    """Of a source, what decides the bytes of its shards."""

    name: str
    format: str
    loss: str
    where: str | None
    language: tuple[str, ...]
    quality: tuple[int, int] | None
    licence: tuple[str, ...]
    rehydrate: bool
    fim: FillInMiddle | None


class TokenizeConfig(Recipe):
    """Of a mixture, what decides the bytes of its shards. Holds no path."""

    sources: tuple[SourceBytes, ...]
    validation: float
    tokenizer: str
    eos: int
    chat: str
    shard_bytes: int


def tokenize(
    mixture: Mixture,
    tokenizer_path: str | Path,
    out: str,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    *,
    chat: str = "model.chat:encode",
    eos: str | int = "</s>",
    shard_bytes: int = SHARD_BYTES,
) -> ShardSet:
    """Write the shards of a mixture, or finish them, or plan complete ones anew when only weights changed.

    Args:
        chat: `module:function` that encodes messages: (tokenizer, messages) -> (ids, loss mask), one mask entry a token.
        eos: the token that ends every document, by its spelling or id.

    Raises:
        UserError: the plan does not add up, a dataset lacks a column, or `out` holds other shards.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    held = estimate(mixture, tokenizer, chat).items()
    likely = {name: Available(tokens=round(a.tokens * ESTIMATE_SLACK), windows=round(a.windows * ESTIMATE_SLACK)) for name, a in held}
    plan(mixture.model_copy(update={"after": None}), likely)
    eos_id = tokenizer.token_to_id(eos) if isinstance(eos, str) else eos
    if eos_id is None or eos_id >= tokenizer.get_vocab_size():
        raise UserError(f"{tokenizer_path}: the tokenizer has no token {eos!r} to end documents with")
    config = TokenizeConfig(
        sources=tuple(SourceBytes(**{key: getattr(source, key) for key in SourceBytes.model_fields}) for source in mixture.datasets()),
        validation=mixture.validation.fraction,
        tokenizer=tokenizer_digest(tokenizer),
        eos=eos_id,
        chat=chat,
        shard_bytes=shard_bytes,
    )
    path = Path(tokenizer_path)
    path = path / "tokenizer.json" if path.is_dir() else path
    inputs = [str(path.resolve()), *(source.dataset for source in mixture.datasets())]
    dataset = run_stage(TOKENIZE, inputs, config, out, cluster=cluster, progress=progress, name=mixture.name)
    return _close(mixture, dataset, config, tokenizer, path)


def check(mixture: Mixture, tokenizer_path: str | Path, chat: str = "model.chat:encode") -> MixturePlan:
    """The plan as far as a sample of each source can tell, without writing anything.

    Raises:
        UserError: as `pipelines.mixture.plan`.
    """
    return plan(mixture, estimate(mixture, load_tokenizer(tokenizer_path), chat))


def estimate(mixture: Mixture, tokenizer: Tokenizer, chat: str = "model.chat:encode") -> dict[str, Available]:
    """Training tokens per source, from evenly spaced documents of evenly spaced row groups; exact for up to 256 documents in 8.

    Raises:
        UserError: a dataset is missing or lacks a column, or `where` does not evaluate.
    """
    held = {}
    for source in mixture.datasets():
        dataset = Dataset.open(source.dataset)
        count = _select(dataset, source).select(pl.len()).collect().item()
        sample = _sample(dataset, source)
        copies = sample["copies"].to_numpy() if source.rehydrate else np.ones(len(sample), np.int64)
        encoded, _ = _encoder(source, tokenizer, chat)(sample[_column(source)].to_list(), sample["id"].to_list())
        lengths = np.array([len(ids) + 1 if isinstance(ids, list) and ids else 0 for ids in encoded], np.int64)
        total = float((lengths * copies).sum()) * (count / max(len(sample), 1)) * (1 - mixture.validation.fraction)
        tokens = round(total)
        held[source.name] = Available(tokens=tokens, windows=-(-tokens // mixture.sequence_length))
    return held


def _sample(dataset: Dataset, source: Source) -> pl.DataFrame:
    """About `ESTIMATE_ROWS` of the rows a source takes, spread over the dataset, in bounded memory."""
    groups = [[path, group] for path, group, _ in _row_groups(dataset)]
    chosen = [groups[place] for place in sorted({round(i) for i in np.linspace(0, len(groups) - 1, min(ESTIMATE_GROUPS, len(groups)))})]
    frames = []
    for group in chosen:
        rows = pl.concat(frame.filter("__chosen") for frame in _frames([group], source))
        frames.append(rows.gather_every(max(1, -(-len(rows) * len(chosen) // ESTIMATE_ROWS))))
    return pl.concat(frames) if frames else pl.DataFrame(schema={"id": pl.String, _column(source): pl.String, "copies": pl.Int64})


def _row_groups(dataset: Dataset) -> Iterator[tuple[str, int, int]]:
    """Every row group of a dataset: (file, number, uncompressed bytes)."""
    for path in dataset.parts:
        with open_part(path) as table:
            for group in range(table.num_row_groups):
                yield path, group, table.metadata.row_group(group).total_byte_size


def _plan_parts(inputs: Sequence[str], config: TokenizeConfig) -> list[dict[str, Any]]:
    """Row groups of one source, as many as make up `shard_bytes`; a run may span files."""
    tokenizer, *datasets = inputs
    parts = []
    for position, uri in enumerate(datasets):
        runs: list[list[list[Any]]] = []
        room = 0
        for path, group, size in _row_groups(Dataset.open(uri)):
            if not runs or room < size:
                runs.append([])
                room = config.shard_bytes
            room -= size
            runs[-1].append([path, group])
        for number, groups in enumerate(runs):
            parts.append({"source": position, "number": number, "groups": groups, "tokenizer": tokenizer, "dataset": Dataset.open(uri).name})
    return parts


def _run_part(payload: dict[str, Any], config: TokenizeConfig, output: PartOutput) -> None:
    source = config.sources[payload["source"]]
    tokenizer = _tokenizer(payload["tokenizer"], config.tokenizer)
    encode = _encoder(source, tokenizer, config.chat)
    dtype = megatron.token_dtype(tokenizer.get_vocab_size())
    with ExitStack() as stack:
        writers = {split: _ShardWriter(stack, output, f"{source.name}-{split}-{payload['number']:05d}", dtype, config, source) for split in SPLITS}
        for frame in _frames(payload["groups"], source):
            output.read(len(frame))
            chosen = frame.get_column("__chosen").fill_null(False).to_list()
            filled = [bool(value) for value in frame.get_column(_column(source)).to_list()]
            rows = frame.filter([a and b for a, b in zip(chosen, filled, strict=True)])
            splits = ["validation" if _hash(document) < config.validation else "train" for document in rows["id"].to_list()]
            # Held-out text stays as it was written, whatever is done to the text trained on.
            movable = [document if split == "train" else None for document, split in zip(rows["id"].to_list(), splits, strict=True)]
            encoded, masks = encode(rows[_column(source)].to_list(), movable)
            kept: list[dict[str, Any]] = []
            copies = rows["copies"].to_list() if source.rehydrate else [1] * len(rows)
            left: list[tuple[str, str, str]] = []
            for document, split, ids, mask, times in zip(rows["id"].to_list(), splits, encoded, masks, copies, strict=True):
                if isinstance(ids, ValueError):
                    left.append((document, "mixture.chat", str(ids)))
                    continue
                times = times if split == "train" else 1
                for _ in range(times):
                    writers[split].add(document, ids, mask, payload["dataset"])
                kept.append({"id": document, "source": source.name, "split": split, "tokens": len(ids) + 1, "copies": times})
            left += [(i, "mixture.where", described(source)) for i, a in zip(frame["id"].to_list(), chosen, strict=True) if not a]
            left += [(i, "mixture.empty", _column(source)) for i, a, b in zip(frame["id"].to_list(), chosen, filled, strict=True) if a and not b]
            output.write(pa.Table.from_pylist(kept, KEPT) if kept else None, _rejected(left, source.name))
        for writer in writers.values():
            writer.close()


KEPT = pa.schema([("id", pa.string()), ("source", pa.string()), ("split", pa.string()), ("tokens", pa.int64()), ("copies", pa.int64())])
DOCS = pa.schema([("id", pa.string()), ("start", pa.int64()), ("length", pa.int64()), ("source", pa.string()), ("dataset", pa.string())])
TOKENIZE = Stage(name="tokenize", version=1, plan=_plan_parts, run=_run_part)


class _ShardWriter:
    """The files of one shard; none appears for a split without documents."""

    def __init__(self, stack: ExitStack, output: PartOutput, prefix: str, dtype: np.dtype, config: TokenizeConfig, source: SourceBytes):
        self.stack, self.output, self.prefix, self.dtype, self.config, self.source = stack, output, prefix, dtype, config, source
        self.ids: list[str] = []
        self.lengths: list[int] = []
        self.datasets: list[str] = []
        self.bin = self.mask = None

    def add(self, document: str, ids: list[int], mask: list[int] | None, dataset: str) -> None:
        if self.bin is None:
            self.bin = self.stack.enter_context(self.output.file(f"{self.prefix}.bin"))
            if mask is not None:
                self.mask = self.stack.enter_context(self.output.file(f"{self.prefix}.mask"))
        self.bin.write(np.array([*ids, self.config.eos], self.dtype).tobytes())
        if self.mask is not None:
            assert len(mask) == len(ids), f"{document}: the loss mask has {len(mask)} entries for {len(ids)} tokens"
            self.mask.write(bytes([*mask, 0]))
        self.ids.append(document)
        self.lengths.append(len(ids) + 1)
        self.datasets.append(dataset)

    def close(self) -> None:
        if not self.ids:
            return
        lengths = np.array(self.lengths, np.int64)
        with self.output.file(f"{self.prefix}.idx") as file:
            megatron.write_index(file, lengths, self.dtype)
        with self.output.file(f"{self.prefix}.ends") as file:
            megatron.write_ends(file, lengths)
        columns = [self.ids, np.cumsum(lengths) - lengths, lengths, [self.source.name] * len(lengths), self.datasets]
        buffer = io.BytesIO()
        pq.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, DOCS, strict=True)], schema=DOCS), buffer, compression="zstd")
        with self.output.file(f"{self.prefix}.docs.parquet") as file:
            file.write(buffer.getvalue())
        self.output.count(**{f"{self.prefix}.documents": len(lengths), f"{self.prefix}.tokens": int(lengths.sum())})


def _frames(groups: list[list[Any]], source: Source | SourceBytes) -> Iterator[pl.DataFrame]:
    """The rows of row groups as frames with `id`, the text or messages, and `__chosen`."""
    for path, group in groups:
        with open_part(path) as table:
            names = {"id", _column(source), *(["cluster_size"] if source.rehydrate else [])}
            chosen = condition(source)
            names |= set() if chosen is None else set(chosen.meta.root_names())
            for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=[n for n in table.schema_arrow.names if n in names]):
                frame = pl.from_arrow(pa.Table.from_batches([batch]))
                yield frame.select("id", _column(source), *_copies(source), (pl.lit(True) if chosen is None else chosen).alias("__chosen"))


def _select(dataset: Dataset, source: Source) -> pl.LazyFrame:
    """The rows a source takes of its dataset, lazily; checks columns and expression before anything runs."""
    rows = dataset.scan()
    schema = rows.collect_schema()
    needed = ["id", _column(source), *(["cluster_size"] if source.rehydrate else []), *(column for key, column in COLUMNS.items() if getattr(source, key))]
    for column in needed:
        if column not in schema:
            raise UserError(f"source {source.name!r}: {source.dataset} has no column {column!r}; it has {', '.join(schema.names())}")
    if source.where:
        try:
            kind = schema.to_frame().select(pl.sql_expr(source.where).alias("where")).schema["where"]
        except (pl.exceptions.PolarsError, ValueError) as error:
            raise UserError(f"source {source.name!r}: where {source.where!r}: {str(error).splitlines()[0]}") from None
        if kind != pl.Boolean:
            raise UserError(f"source {source.name!r}: where {source.where!r} is not a condition, it yields {kind}")
    chosen = condition(source)
    return rows if chosen is None else rows.filter(chosen)


def _column(source: Source | SourceBytes) -> str:
    return "text" if source.format == "text" else "messages"


def _copies(source: Source | SourceBytes) -> list[pl.Expr]:
    """How often a document is written (`copies`), by the number of its copies in the crawl."""
    if not source.rehydrate:
        return []
    from pipelines.dedup.rehydrate import rehydration_weight

    weigh = lambda sizes: pl.Series(rehydration_weight(sizes.to_numpy()).astype(np.int64))
    return [pl.col("cluster_size").fill_null(1).map_batches(weigh, return_dtype=pl.Int64, is_elementwise=True).alias("copies")]


def _encoder(source: Source | SourceBytes, tokenizer: Tokenizer, chat: str) -> Callable[[list[Any], list[str | None]], Encoded]:
    """(values of the source's column, ids of documents that may be rearranged) -> (token ids, loss masks or None), a list each; a
    ValueError in place of ids that cannot be."""
    if source.fim:
        rearrange = FillInMiddleEncoder(source.fim, tokenizer)
        return lambda values, documents: (rearrange.encode(values, documents), [None] * len(values))
    if source.format == "text":
        return lambda values, _: (encode_batch(tokenizer, values), [None] * len(values))
    encode = chat_encoder(chat)

    def encode_chat(messages: list[dict[str, Any]]) -> tuple[list[int] | ValueError, list[int] | None]:
        try:
            # Parquet gives every message every key; a key without a value was not there.
            ids, mask = encode(tokenizer, [{key: value for key, value in message.items() if value is not None} for message in messages])
        except ValueError as error:  # a role nobody knows, an empty conversation: the row's fault, and its reason to leave
            return error, None
        return list(ids), list(mask) if source.loss == "assistant" else None

    def encode_chats(values: list[Any], _: list[str | None]) -> Encoded:
        pairs = [encode_chat(messages) for messages in values]
        return [ids for ids, _ in pairs], [mask for _, mask in pairs]

    return encode_chats


def chat_encoder(name: str) -> ChatEncoder:
    """The function called `module:function`.

    Raises:
        UserError: there is none.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"no chat encoder {name!r} (module:function): {error}") from None


@lru_cache(maxsize=2)
def _tokenizer(path: str, digest: str) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    if tokenizer_digest(tokenizer) != digest:
        raise UserError(f"{path}: the tokenizer changed while its shards were being written")
    return tokenizer


def _hash(document: str) -> float:
    """A document's place in [0, 1): the same in every mixture."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8, person=b"validation").digest(), "big") / 2**64


def _rejected(rows: list[tuple[str, str, str]], source: str) -> pa.Table | None:
    if not rows:
        return None
    ids, reasons, details = zip(*rows, strict=True)
    return pa.table({"id": pa.array(ids, pa.string()), "source": [source] * len(ids), "reason": list(reasons), "detail": list(details)})


def _close(mixture: Mixture, dataset: Dataset, config: TokenizeConfig, tokenizer: Tokenizer, path: Path) -> ShardSet:
    """Plan with exact counts, then write tokenizer.json and, last, manifest.json."""
    text = path.read_bytes()
    sums = {name: dataset.meta["sha256"][name] for name in dataset.meta["files"]} | {"tokenizer.json": hashlib.sha256(text).hexdigest()}
    sources = []
    for source, entry in zip(mixture.datasets(), dataset.meta["inputs"][1:], strict=True):
        splits = {split: _entries(dataset, source.name, split) for split in SPLITS}
        described = {"uri": relative_uri(source.dataset, dataset.uri), "name": entry["name"], "digest": entry["digest"]}
        sources.append({"name": source.name, "format": source.format, "dataset": described, **splits})
    flat = mixture.flat()
    relative = tuple(source.model_copy(update={"dataset": relative_uri(source.dataset, dataset.uri)}) for source in flat.sources)
    manifest = {
        "format": FORMAT,
        "name": mixture.name,
        "dataset_digest": dataset.digest,
        "dtype": megatron.token_dtype(tokenizer.get_vocab_size()).name,
        "tokenizer": {"digest": config.tokenizer, "vocab_size": tokenizer.get_vocab_size(), "eos": config.eos},
        "mixture": flat.model_copy(update={"sources": relative}).model_dump(mode="json"),
        "sources": sources,
        "sha256": sums,
        "code_version": code_version(),
    }
    if (old := f"{dataset.uri}/manifest.json") and fsspec.url_to_fs(old)[0].exists(fsspec.url_to_fs(old)[1]):
        manifest["plan"] = ShardSet.open(dataset.uri).manifest["plan"]  # `after` may name the plan that is about to be replaced
    planned = plan_over(ShardSet(dataset.uri, manifest), mixture)
    indices = {f"windows/{entry.index}": entry.sha256 for lane in planned.lanes for entry in lane.passes() if entry.index}
    manifest |= {"plan": planned.model_dump(mode="json"), "plan_digest": planned.digest, "sha256": sums | indices}
    write_file(f"{dataset.uri}/tokenizer.json", text)
    write_file(f"{dataset.uri}/manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    return ShardSet(dataset.uri, manifest)


def _entries(dataset: Dataset, source: str, split: str) -> list[dict[str, Any]]:
    names = set(dataset.meta["files"])
    pattern = re.compile(rf"files/({re.escape(source)}-{split}-\d+)\.bin")
    prefixes = sorted(match[1] for name in names if (match := pattern.fullmatch(name)))
    counts = [{key: int(dataset.counters[f"{prefix}.{key}"]) for key in ("documents", "tokens")} for prefix in prefixes]
    return [{"prefix": prefix, **count, "mask": f"files/{prefix}.mask" in names} for prefix, count in zip(prefixes, counts, strict=True)]


def relative_uri(uri: str, folder: str) -> str:
    """A local path as seen from a local folder, so that a run can be moved; other URIs as they are."""
    if "://" in uri or "://" in folder:
        return uri
    return os.path.relpath(os.path.abspath(uri), os.path.abspath(folder))
