"""Which stretches of text can stand twice at all: minimizers that do (see kernels/minimizers.py). Only exact substrings need this."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from kernels.minimizers import byte_symbols, minimizers, number_symbols
from kernels.ngrams import utf8_column
from pipelines.dedup.chunks import Outbox, chunks, messages
from pipelines.dedup.exchange import bucket_of, column, send
from pipelines.dedup.spans.recipe import SpanRecipe
from pipelines.stage import PartOutput
from pipelines.tokenizer import load_tokenizer


def symbols_of(texts: pa.ChunkedArray, tokenizer: Tokenizer | None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row by row (symbols uint64 [N], first byte int64 [N], byte after int64 [N]): the text's bytes, or its tokens."""
    if tokenizer is None:
        data, offsets = utf8_column(texts)
        for begin, end in zip(offsets[:-1], offsets[1:]):
            places = np.arange(end - begin)
            yield byte_symbols(data[begin:end]), places, places + 1
        return
    tokenizer.encode_special_tokens = True  # text that spells a special token is text
    for text in texts.to_pylist():
        encoding = tokenizer.encode(text or "", add_special_tokens=False)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)  # in characters
        characters = np.frombuffer((text or "").encode("utf-32-le"), np.uint32)
        widths = 1 + (characters >= 0x80) + (characters >= 0x800) + (characters >= 0x10000)
        places = np.concatenate((np.zeros(1, np.int64), np.cumsum(widths)))
        yield number_symbols(np.array(encoding.ids, np.int64)), places[spans[:, 0]], places[spans[:, 1]]


def write_seeds(payload: dict, recipe: SpanRecipe, output: PartOutput) -> None:
    """Send each chunk's minimizers to their buckets: (key, chunk, windows it stands for, whether it stands there more than once)."""
    tokenizer = load_tokenizer(payload["tokenizer"]) if payload["tokenizer"] else None
    outbox = Outbox(output, "seeds", payload["index"], payload["buckets"])
    for number, rows in enumerate(chunks(payload["part"], recipe.text, [recipe.text]), payload["first_chunk"]):
        found = [minimizers(symbols, recipe.width) for symbols, _, _ in symbols_of(rows[recipe.text], tokenizer)]
        keys = np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _ in found)])
        windows = np.concatenate([np.empty(0, np.int64), *(np.diff(firsts) for _, firsts in found)])
        keys, inverse, times = np.unique(keys, return_inverse=True, return_counts=True)
        stand_for = np.bincount(inverse, weights=windows, minlength=keys.size).astype(np.uint32)
        table = pa.table({"key": keys, "chunk": np.full(keys.size, number, np.uint32), "windows": stand_for, "many": times > 1})
        outbox.add(table, bucket_of(keys, payload["buckets"]))
    outbox.close()


def find_repeated_seeds(payload: dict, recipe: SpanRecipe, output: PartOutput) -> None:
    """Tell each chunk which of its minimizers stand anywhere else, or twice in it; count the windows they stand for."""
    table = messages(payload["seeds"], payload["bucket"])
    key, chunk, many = column(table, "key"), column(table, "chunk"), column(table, "many")
    order = np.argsort(key, kind="stable")
    key, chunk = key[order], chunk[order]
    repeated = np.array(many[order])
    same = key[1:] == key[:-1]
    repeated[1:] |= same
    repeated[:-1] |= same
    told = pa.table({"key": key[repeated]})
    send(output, f"repeated-{payload['bucket']:05d}.arrow", told, chunk[repeated].astype(np.int64), payload["chunks"])
    output.count(seeds=int(key.size), repeated_seeds=int(repeated.sum()), windows=int(column(table, "windows")[order][repeated].sum()))
