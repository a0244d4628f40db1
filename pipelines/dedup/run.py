"""Deduplication of whole datasets, as a chain of stages.

    url-keys, url-groups         captures of one page meet; all but the best leave            (only if exact.url)
    signatures                   text digests and MinHash band keys of the rest
    edges                        equal keys meet, bucket by bucket
    candidates, requests, sets, verified   instead of edges with `minhash.verify`: only pairs that are truly alike
    stars-NN, edges-NN           components, until they are stars (none beyond the first when there is one bucket)
    labels, members, clusters    each cluster meets in one bucket, which chooses the survivor
    survivors, <index>/crawl-N   with an index: what later crawls must know of this one
    <out>                        each input part again: kept with cluster_id and cluster_size, or rejected with its reason

Every stage is parts with receipts under `<out>/work`, so an interrupted run goes on at the step and the bucket where it stood, and
none holds more than one part's or one bucket's keys. Nothing depends on the number of workers.

Parts of earlier crawls, if there is an index, are numbered before those of this one: wherever documents meet, the earlier comes first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pipelines.cluster import Cluster
from pipelines.dataset import Dataset, open_part
from pipelines.dedup.apply import apply
from pipelines.dedup.bands import choose_captures, find_candidates, find_edges
from pipelines.dedup.clusters import choose_survivors, send_members
from pipelines.dedup.components import large_star, send_labels, small_star
from pipelines.dedup.exchange import channel
from pipelines.dedup.index import Index, index_parts, index_stage, open_index
from pipelines.dedup.recipe import DedupRecipe
from pipelines.dedup.signatures import write_signatures, write_url_keys
from pipelines.dedup.survivors import send_survivors
from pipelines.dedup.verify import judge_pairs, request_sets, send_sets
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.stage import PartOutput, Stage, run_stage

VERSION = 2
KEYS_PER_BUCKET = 4_000_000  # 16 bytes each and as much again to sort them: about 200 MB a worker
SHINGLES_PER_JUDGE = 16_000_000  # 8 bytes each


def dedup(
    inputs: Sequence[str | Dataset],
    recipe: DedupRecipe,
    out: str,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    name: str | None = None,
    index: str | None = None,
) -> Dataset:
    """Deduplicate datasets (or single Parquet files) against each other and themselves into the dataset `out`.

    Kept rows keep all their columns and gain `cluster_id` and `cluster_size`; losers are rejected rows with `reason` ("exact.url",
    "exact.text", "minhash.near_duplicate"), `detail` and `duplicate_of`. The order of the inputs matters only for ties.

    Args:
        index: URI of the folder that remembers earlier crawls (`pipelines.dedup.index`). What is like a document that one of them kept
            leaves; then the index is extended by this crawl. Run again, the same crawl is compared with the same earlier ones and adds nothing.

    Raises:
        UserError: an input is no finished dataset, all inputs are empty, a column that the recipe names is missing, `out` holds
            another run, or the index does not fit.
    """
    uris = [entry.uri if isinstance(entry, Dataset) else str(entry) for entry in inputs]
    parts = _parts(uris)
    if not parts:
        raise UserError("dedup: nothing to do, the input is empty")
    memory = open_index(index, recipe, uris) if index is not None else None
    if Dataset.exists(out):  # complete, or another run's: the runner says which, and the work folder may be gone
        if memory is not None and not Dataset.exists(memory.own):
            raise UserError(f"{out}: complete, but not a crawl of the index {index}; remove it or leave the index out")
        return run_stage(_stage("dedup", apply, []), uris, recipe, out, name=name)
    keys = sum(rows for _, rows in parts) * (1 + (recipe.minhash.bands if recipe.minhash else 0)) + (memory.keys if memory else 0)
    buckets = recipe.buckets or -(-max(keys, 1) // KEYS_PER_BUCKET)
    return _Run(uris, parts, recipe, out, cluster, progress, buckets, memory).to_the_end(name)


@dataclass(frozen=True)
class _Run:
    """One deduplication: the chain of its steps, and the payloads that a step's parts or buckets get."""

    uris: list[str]
    new_parts: list[tuple[str, int]]  # (URI, rows)
    recipe: DedupRecipe
    out: str
    cluster: Cluster | None
    progress: Progress
    buckets: int
    index: Index | None

    def to_the_end(self, name: str | None) -> Dataset:
        recipe = self.recipe
        captures = urls = texts = bands = verdicts = None
        if recipe.exact.url:
            urls = self.of_parts(self.step("url-keys", write_url_keys, self.by_part()), "urls")
            captures = self.of_buckets(self.step("url-groups", choose_captures, self.by_bucket(urls=urls)), "captures")
        signed = self.step("signatures", write_signatures, self.by_part(captures=captures))
        rows = self.of_parts(signed, "rows")
        if recipe.exact.text:
            texts = self.of_parts(signed, "texts")
        if recipe.minhash:
            bands = self.of_parts(signed, "bands")
        if texts or bands:
            verdicts = self.choose(self.components(self.edges(signed, texts, bands)), rows)
        if self.index:
            self.extend_index({"urls": urls, "texts": texts, "bands": bands}, rows, captures, verdicts)
        stage = _stage("dedup", apply, self.by_part(verdicts=verdicts, captures=captures))
        return run_stage(stage, self.uris, recipe, self.out, cluster=self.cluster, progress=self.progress, name=name)

    def edges(self, signed: Dataset, texts: dict | None, bands: dict | None) -> list[dict]:
        """Channels of the edges: of all that met, or of what was verified."""
        if bands is None or self.recipe.minhash.verify is None:
            return [self.of_buckets(self.step("edges", find_edges, self.by_bucket(texts=texts, bands=bands)), "edges")]
        candidates = self.step("candidates", find_candidates, self.by_bucket(texts=texts, bands=bands))
        shingles = signed.counters["shingles"] / max(signed.counters["signatures"], 1)
        judges = 1 + int(2 * candidates.counters["pairs"] * shingles) // SHINGLES_PER_JUDGE
        requests = self.step("requests", request_sets, self.by_bucket(pairs=self.of_buckets(candidates, "pairs"), judges=judges))
        payloads = self.by_every_part(requests=self.of_buckets(requests, "requests"), judges=judges)
        sets = channel(self.step("sets", send_sets, payloads), "sets", self.parts)
        pairs = self.of_buckets(requests, "pairs")
        payloads = [{"bucket": judge, "buckets": self.buckets, "pairs": pairs, "sets": sets} for judge in range(judges)]
        return [self.of_buckets(candidates, "edges"), channel(self.step("verified", judge_pairs, payloads), "edges", judges)]

    def components(self, edges: list[dict]) -> dict:
        """Channel of the stars: large-star and small-star in turn until every component is one."""
        number = 1
        while True:
            step = self.step(f"stars-{number:02d}", large_star, self.by_bucket(edges=edges))
            stars = self.of_buckets(step, "stars")
            if not step.counters["unsettled"]:
                return stars
            edges = [self.of_buckets(self.step(f"edges-{number:02d}", small_star, self.by_bucket(edges=[stars])), "edges")]
            number += 1

    def choose(self, stars: dict, rows: dict) -> dict:
        """Channel of the verdicts on all that are in a cluster."""
        labels = self.of_buckets(self.step("labels", send_labels, self.by_bucket(stars=stars)), "labels")
        members = channel(self.step("members", send_members, self.by_every_part(rows=rows, labels=labels)), "members", self.parts)
        return self.of_buckets(self.step("clusters", choose_survivors, self.by_bucket(members=members)), "verdicts")

    def extend_index(self, keys: dict[str, dict | None], rows: dict, captures: dict | None, verdicts: dict | None) -> None:
        """Add this crawl's survivors to the index; done before `out` is closed, so that a closed `out` is in it."""
        sizes = [size for _, size in self.new_parts]
        place = {"base": self.base, "first_rows": [0, *accumulate(sizes)][:-1], "index_parts": index_parts(sum(sizes))}
        survivors = self.step("survivors", send_survivors, self.by_part(**keys, rows=rows, captures=captures, verdicts=verdicts, **place))
        stage = index_stage(self.index, self.recipe, [kind for kind in keys if keys[kind]], survivors, len(sizes), self.buckets, place["index_parts"])
        run_stage(stage, [survivors.uri], self.recipe, self.index.own, cluster=self.cluster, progress=self.progress)

    # ------------------------------------------------------------------------------------------------------- steps and payloads

    def step(self, label: str, run: Callable[[dict, DedupRecipe, PartOutput], None], payloads: list[dict]) -> Dataset:
        """Run a step under `work/`. Its inputs are the channels its payloads name, and the run's own where it goes by parts."""
        sources = dict.fromkeys([*(self.uris if "part" in payloads[0] else []), *(self.index.uris if self.index else []), *_datasets(payloads[0])])
        stage = _stage(f"dedup.{label}", run, payloads)
        return run_stage(stage, list(sources), self.recipe, f"{self.out}/work/{label}", cluster=self.cluster, progress=self.progress)

    @property
    def base(self) -> int:
        """The number of this crawl's first part."""
        return self.index.bases[-1] if self.index else 0

    @property
    def parts(self) -> int:
        return self.base + len(self.new_parts)

    def by_part(self, **more: Any) -> list[dict]:
        shared = {"buckets": self.buckets, "base": self.base, **more}
        return [{"index": self.base + place, "part": part, **shared} for place, (part, _) in enumerate(self.new_parts)]

    def by_every_part(self, **more: Any) -> list[dict]:
        """Also the parts of earlier crawls, whose `part` is None: they have rows, not texts."""
        stored = self.index.parts() if self.index else []
        return [{"buckets": self.buckets, "base": self.base, **more, **payload} for payload in stored] + self.by_part(**more)

    def by_bucket(self, **more: Any) -> list[dict]:
        shared = {"buckets": self.buckets, "parts": self.parts, "base": self.base, **more}
        return [{"bucket": bucket, **shared, "earlier": self.index.partitions(bucket, self.buckets) if self.index else {}} for bucket in range(self.buckets)]

    def of_parts(self, step: Dataset, kind: str) -> dict:
        return channel(step, kind, len(self.new_parts), self.base)

    def of_buckets(self, step: Dataset, kind: str) -> dict:
        return channel(step, kind, self.buckets)


def _datasets(payload: dict) -> list[str]:
    """The datasets of a payload's channels."""
    values = [entry for value in payload.values() for entry in (value if isinstance(value, list) else [value])]
    return [value["dataset"] for value in values if isinstance(value, dict) and "dataset" in value]


def _stage(name: str, run: Callable[[dict, Any, PartOutput], None], payloads: list[dict]) -> Stage:
    return Stage(name=name, version=VERSION, plan=lambda inputs, config: payloads, run=run)


def _parts(uris: Sequence[str]) -> list[tuple[str, int]]:
    """All Parquet files of the inputs, in order, with their rows."""
    parts = [part for uri in uris for part in ([uri] if uri.endswith(".parquet") else Dataset.open(uri).parts)]
    rows = []
    for part in parts:
        with open_part(part) as table:
            rows.append(table.metadata.num_rows)
    return list(zip(parts, rows, strict=True))
