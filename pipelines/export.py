"""Shards in other projects' formats, token for token: datatrove `.ds`, OLMo `.npy`, MosaicML MDS.

Layouts, all little-endian:

- datatrove: `.ds` u16 or u32 tokens; `.ds.index` u64 cumulative ends; `.ds.metadata` three lines (tokenizer|token size, token
  count, the same for people); `.ds.loss` one byte a token for chat.
- OLMo-core: `.npy` is a headerless dump of tokens (u16 or u32, not NumPy's format); `.csv.gz` has rows start,end,id,src,loc.
- MDS v2: a shard is u32 N, u32 [N+1] offsets, the JSON config, then samples; a sample is u32 sizes of its variable columns, then
  the columns, sorted by name. `tokens` is an `ndarray`, whose body is byte (ndim << 2 | shape code), shape, values.
"""

import csv
import gzip
import hashlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines.atomic import write_file
from pipelines.errors import UserError
from pipelines.progress import Progress, ProgressEvent, silent
from pipelines.shardset import SPLITS, Shard, ShardSet

MDS_LIMIT = 64 << 20  # bytes a shard; offsets are u32, so it must stay below 4 GiB


def export(uri: str, form: str, out: str | Path, progress: Progress = silent) -> list[Path]:
    """Write a shard set in another format to `<out>/<source>-<split>/`.

    Args:
        form: "ds" (datatrove), "npy" (OLMo-core) or "mds" (MosaicML streaming).
        out: a folder of this machine.

    Returns:
        the folders written.

    Raises:
        UserError: no shards at the URI, or an unknown format.
    """
    shards = ShardSet.open(uri)
    if form not in FORMATS:
        raise UserError(f"unknown export format {form!r}; there are {', '.join(FORMATS)}")
    jobs = [(name, split) for name in shards.sources for split in SPLITS if shards.source(name)[split]]
    folders = []
    for done, (name, split) in enumerate(jobs, 1):
        folder = Path(out) / f"{name}-{split}"
        folder.mkdir(parents=True, exist_ok=True)
        FORMATS[form](shards, shards.shards(name, split), folder)
        folders.append(folder)
        progress(ProgressEvent("export", done, len(jobs), "sources", folder.name))
    return folders


def _datatrove(shards: ShardSet, parts: list[Shard], folder: Path) -> None:
    dtype = _unsigned(shards)
    tokenizer = shards.manifest["tokenizer"]["digest"][:16]
    for shard in parts:
        write_file(str(folder / f"{shard.prefix}.ds"), shard.tokens.astype(dtype).tobytes())
        write_file(str(folder / f"{shard.prefix}.ds.index"), shard.ends.astype("<u8").tobytes())
        if shard.mask is not None:
            write_file(str(folder / f"{shard.prefix}.ds.loss"), shard.mask.tobytes())
        count = shard.token_count
        write_file(str(folder / f"{shard.prefix}.ds.metadata"), f"gristmill-{tokenizer}|{dtype.itemsize}\n{count}\n{count / 1e6:.2f} M".encode())


def _olmo(shards: ShardSet, parts: list[Shard], folder: Path) -> None:
    for shard in parts:
        write_file(str(folder / f"{shard.prefix}.npy"), shard.tokens.astype(_unsigned(shards)).tobytes())
        text = io.StringIO(newline="")
        starts = [0, *shard.ends[:-1].tolist()]
        csv.writer(text).writerows(zip(starts, shard.ends.tolist(), shard.ids, [shard.source] * shard.documents, range(shard.documents), strict=True))
        write_file(str(folder / f"{shard.prefix}.csv.gz"), gzip.compress(text.getvalue().encode(), mtime=0))


def _mosaic(shards: ShardSet, parts: list[Shard], folder: Path) -> None:
    kind = f"ndarray:{_unsigned(shards).name}"
    columns = {"id": "str", "tokens": kind}
    config = {"column_encodings": list(columns.values()), "column_names": list(columns), "column_sizes": [None, None], "compression": None,
              "format": "mds", "hashes": ["sha256"], "size_limit": MDS_LIMIT, "version": 2}  # fmt: skip
    header = json.dumps(config, sort_keys=True).encode()
    samples: list[bytes] = []
    entries: list[dict] = []
    size = 0

    def close() -> None:
        nonlocal samples, size
        offset = 4 + 4 * (len(samples) + 1) + len(header)
        offsets = offset + np.cumsum([0, *map(len, samples)])
        data = struct.pack("<I", len(samples)) + offsets.astype("<u4").tobytes() + header + b"".join(samples)
        name = f"shard.{len(entries):05d}.mds"
        write_file(str(folder / name), data)
        raw = {"basename": name, "bytes": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}
        entries.append({**config, "raw_data": raw, "samples": len(samples), "zip_data": None})
        samples, size = [], 0

    for shard in parts:
        for index, identity in enumerate(shard.ids):
            bodies = [identity.encode(), _ndarray(shard.document(index).astype(_unsigned(shards)))]
            sample = struct.pack("<2I", *map(len, bodies)) + b"".join(bodies)
            if samples and size + len(sample) > MDS_LIMIT:
                close()
            samples.append(sample)
            size += len(sample)
    close()
    write_file(str(folder / "index.json"), json.dumps({"shards": entries, "version": 2}, sort_keys=True).encode())


def _ndarray(values: np.ndarray) -> bytes:
    """A one-dimensional array as MDS writes it: the smallest of u8, u16, u32 and u64 that holds the length."""
    code = next(code for code, limit in enumerate((1 << 8, 1 << 16, 1 << 32, 1 << 64)) if len(values) < limit)
    return bytes([1 << 2 | code]) + struct.pack("<" + "BHIQ"[code], len(values)) + values.tobytes()


def _unsigned(shards: ShardSet) -> np.dtype:
    return np.dtype("<u2" if shards.dtype.itemsize == 2 else "<u4")


FORMATS: dict[str, Callable[[ShardSet, list[Shard], Path], None]] = {"ds": _datatrove, "npy": _olmo, "mds": _mosaic}
