"""A shard set on disk: what `pipelines.shards.tokenize` wrote and `pipelines.loader` reads.

    <shards>/
      files/web-train-00000.bin .idx           tokens, readable by Megatron-core as they are (see pipelines.megatron)
      files/web-train-00000.ends .docs.parquet where documents end; which documents they are, row i = sequence i
      files/web-train-00000.mask               chat: 1 byte a token, counts in the loss
      windows/ plans/                          window indices (best-fit, padded, or over what a plan left unread) and the plans made so far
      parts/ rejected/ receipts/ dataset.json  the same documents as a dataset of the house, with reasons for those left out
      tokenizer.json
      manifest.json                            sources, counts, plan, tokenizer's digest, SHA-256 of every file; written last
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np

from pipelines.errors import UserError
from pipelines.mixture.plan import MixturePlan
from pipelines.mixture.recipe import Mixture
from pipelines.progress import Progress, ProgressEvent, silent
from pipelines.shard_cache import ShardCache
from pipelines.storage import open_input

if TYPE_CHECKING:  # a loader that reads tokens needs neither tokenizers nor tables, and they are a quarter of its memory
    from tokenizers import Tokenizer

FORMAT = "gristmill-shards/2"  # 2: plans in lanes, window indices beside the shards
SPLITS = ("train", "validation")


class Shard:
    """One `.bin` with its companions. Arrays stay on disk."""

    def __init__(self, shards: "ShardSet", source: str, entry: dict[str, Any]):
        self._shards, self.source, self.prefix = shards, source, entry["prefix"]
        self.documents, self.token_count, self.masked = entry["documents"], entry["tokens"], entry["mask"]

    @property
    def tokens(self) -> np.ndarray:
        """u16 or i32 [tokens]."""
        return self._shards.array(f"files/{self.prefix}.bin", self._shards.dtype)

    @property
    def ends(self) -> np.ndarray:
        """u64 [documents], cumulative ends in tokens."""
        return self._shards.array(f"files/{self.prefix}.ends", np.dtype("<u8"))

    @property
    def mask(self) -> np.ndarray | None:
        """u8 [tokens], 1 where the token is to be predicted; None where all are."""
        return self._shards.array(f"files/{self.prefix}.mask", np.dtype(np.uint8)) if self.masked else None

    @cached_property
    def ids(self) -> list[str]:
        """The documents' ids, in order."""
        import pyarrow.parquet as pq

        with open_input(self._shards.path(f"{self.prefix}.docs.parquet")) as file:
            return pq.read_table(io.BytesIO(file.read()), columns=["id"]).column("id").to_pylist()

    def document(self, index: int) -> np.ndarray:
        """Token ids of the document at `index`."""
        return self.tokens[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]


@dataclass(frozen=True)
class ShardDocument:
    """A document as `inspect` shows it."""

    source: str
    split: str
    id: str
    tokens: int
    text: str


class ShardSet:
    """A closed shard set; open it with `ShardSet.open(uri)`."""

    def __init__(self, uri: str, manifest: dict[str, Any]):
        self.uri, self.manifest = uri.rstrip("/"), manifest
        self.dtype = np.dtype(manifest["dtype"])
        self.eos = manifest["tokenizer"]["eos"]
        self._local = "://" not in self.uri
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, uri: str) -> "ShardSet":
        """Open a shard set.

        Raises:
            UserError: there is none, it is not finished, or it is of another format.
        """
        uri = str(uri).removeprefix("file://")
        fs, root = fsspec.url_to_fs(uri)
        root = root.rstrip("/")
        if not fs.exists(f"{root}/manifest.json"):
            begun = fs.exists(f"{root}/plan.json")
            why = "the shards are not finished; run their command again" if begun else "no token shards here (no manifest.json)"
            raise UserError(f"{uri}: {why}")
        with fs.open(f"{root}/manifest.json", "rb") as file:
            manifest = json.load(file)
        if manifest.get("format") != FORMAT:
            raise UserError(f"{uri}: format {manifest.get('format')!r}, this version reads {FORMAT!r}; tokenize again")
        return cls(uri, manifest)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def sources(self) -> list[str]:
        return [source["name"] for source in self.manifest["sources"]]

    @property
    def mixture(self) -> Mixture:
        """The mixture they were made for; dataset paths as recorded (relative to the shard set's folder)."""
        return Mixture.model_validate(self.manifest["mixture"])

    @property
    def plan(self) -> MixturePlan:
        return MixturePlan.model_validate(self.manifest["plan"])

    @property
    def tokens(self) -> dict[str, int]:
        """Training tokens per source."""
        return {name: sum(shard.token_count for shard in self.shards(name)) for name in self.sources}

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        with open_input(f"{self.uri}/tokenizer.json") as file:
            return Tokenizer.from_buffer(file.read())

    def source(self, name: str) -> dict[str, Any]:
        """A source's entry in the manifest."""
        return next(source for source in self.manifest["sources"] if source["name"] == name)

    def dataset_uri(self, source: str) -> str:
        """Where the source's dataset lies, as seen from where the shards lie now."""
        uri = self.source(source)["dataset"]["uri"]
        return uri if "://" in uri or os.path.isabs(uri) else os.path.normpath(f"{self.uri}/{uri}")

    def shards(self, source: str, split: str = "train") -> list[Shard]:
        return [Shard(self, source, entry) for entry in self.source(source)[split]]

    def path(self, name: str) -> str:
        return f"{self.uri}/files/{name}"

    def array(self, name: str, dtype: np.dtype, sha256: str | None = None) -> np.ndarray:
        """A file of the set as an array on disk: a memory map, of a checked copy where the set lies elsewhere.

        Args:
            name: relative to the set. sha256: what the file must be, where the manifest does not say.

        Raises:
            UserError: a fetched file does not have the recorded SHA-256.
        """
        path = f"{self.uri}/{name}"
        if not self._local:
            return self.cache.array(path, sha256 or self.manifest["sha256"][name], dtype)
        if name not in self._maps:
            self._maps[name] = np.asarray(np.memmap(path, dtype, mode="r")) if os.path.getsize(path) else np.zeros(0, dtype)
        return self._maps[name]

    @cached_property
    def cache(self) -> ShardCache:
        """Where files of a remote set are kept on this machine."""
        return ShardCache.default()

    def __getstate__(self) -> dict[str, Any]:
        """To another process goes what the set is, not what was opened of it."""
        return {key: value for key, value in vars(self).items() if key != "cache"} | {"_maps": {}}


def verify(uri: str, progress: Progress = silent) -> list[str]:
    """Compare every file with the manifest's SHA-256; returns one line a damaged file (empty: all is well)."""
    shards = ShardSet.open(uri)
    fs, root = fsspec.url_to_fs(shards.uri)
    faults = []
    sums = shards.manifest["sha256"]
    for done, (name, expected) in enumerate(sorted(sums.items()), 1):
        path = f"{root.rstrip('/')}/{name}"
        if not fs.exists(path):
            faults.append(f"{name}: missing")
            continue
        with fs.open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            faults.append(f"{name}: damaged (SHA-256 {found[:12]}, the manifest says {expected[:12]})")
        progress(ProgressEvent("verify", done, len(sums), "files"))
    return faults


def inspect(uri: str, n: int = 3, source: str | None = None) -> Iterator[ShardDocument]:
    """The first `n` documents of each source and split, decoded.

    Raises:
        UserError: no shards at the URI, or no such source.
    """
    shards = ShardSet.open(uri)
    if source is not None and source not in shards.sources:
        raise UserError(f"{uri}: no source {source!r}; there are {', '.join(shards.sources)}")
    for name in shards.sources if source is None else [source]:
        for split in SPLITS:
            left = n
            for shard in shards.shards(name, split):
                for index in range(min(left, shard.documents)):
                    ids = shard.document(index).tolist()
                    yield ShardDocument(name, split, shard.ids[index], len(ids), shards.tokenizer.decode(ids, skip_special_tokens=False))
                left -= min(left, shard.documents)
