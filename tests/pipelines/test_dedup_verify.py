"""Verified candidates: clusters are exactly the components of the pairs that are truly alike, whatever the buckets and parts."""

import itertools

import networkx
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kernels.ngrams import ngrams_reference
from pipelines.dedup import DedupRecipe, dedup
from pipelines.dedup.verify import sets_of

THRESHOLD = 0.6
# So many short bands that every pair above the threshold, and many a pair far below, is a candidate: P(0.6) = 1 - 10^-12.
GENEROUS = {"bands": 62, "rows": 2, "verify": THRESHOLD, "heads": 1000}


def words(draw, count):
    return [bytes(word.tolist()).decode() for word in (draw.integers(0, 26, (count, 6)) + ord("a")).astype(np.uint8)]


@pytest.fixture(scope="module")
def texts():
    """Families whose members share a third to all of their words, some equal."""
    draw = np.random.default_rng(8)
    texts = []
    for _ in range(25):
        base = words(draw, 60)
        for _ in range(draw.integers(1, 7)):
            kept = int(draw.integers(20, 61))
            texts.append(" ".join(base[:kept] + words(draw, 60 - kept)))
    texts += texts[:10]
    draw.shuffle(texts)
    return texts


def write(folder, texts, parts):
    folder.mkdir()
    paths = []
    for part in range(parts):
        paths.append(str(folder / f"{part}.parquet"))
        rows = range(part, len(texts), parts)
        pq.write_table(pa.table({"id": [str(row) for row in rows], "text": [texts[row] for row in rows]}), paths[-1])
    return paths


def clusters_of(dataset):
    columns = ["id", "cluster_id"]
    frame = pl.concat([dataset.scan(columns).collect(), dataset.scan_rejected(columns).collect()])
    return {frozenset(map(int, ids)) for ids in frame.group_by("cluster_id").agg("id")["id"]}


@pytest.fixture(scope="module")
def components(texts):
    """Those of the graph of all pairs whose similarity reaches the threshold."""
    grams = [set(ngrams_reference(text, 5)) for text in texts]
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(texts)))
    for (i, left), (j, right) in itertools.combinations(enumerate(grams), 2):
        if len(left & right) >= THRESHOLD * len(left | right):
            graph.add_edge(i, j)
    return {frozenset(ids) for ids in networkx.connected_components(graph)}


@pytest.mark.parametrize(("parts", "buckets", "exact"), [(1, 1, True), (3, 4, True), (2, 3, False)])
def test_clusters_are_the_components_of_the_truly_alike(parts, buckets, exact, texts, components, tmp_path):
    recipe = DedupRecipe(exact={"url": False, "text": exact}, minhash=GENEROUS, buckets=buckets)
    result = dedup(write(tmp_path / "in", texts, parts), recipe, str(tmp_path / "out"))
    assert clusters_of(result) == components
    loose = dedup(write(tmp_path / "in2", texts, parts), DedupRecipe(minhash=GENEROUS | {"verify": None}), str(tmp_path / "loose"))
    assert loose.rejected_rows > result.rejected_rows  # the bands alone join what only looks alike


def test_a_star_finds_no_pair_that_all_pairs_do_not(texts, tmp_path):
    found = []
    for heads in (1, 2, 1000):
        recipe = DedupRecipe(exact={"url": False}, minhash=GENEROUS | {"heads": heads})
        found.append(clusters_of(dedup(write(tmp_path / f"in-{heads}", texts, 2), recipe, str(tmp_path / f"out-{heads}"))))
    whole = {member: cluster for cluster in found[-1] for member in cluster}
    for clusters in found[:-1]:
        assert all(cluster <= whole[next(iter(cluster))] for cluster in clusters)


def test_many_judges_decide_alike(texts, tmp_path, monkeypatch):
    paths = write(tmp_path / "in", texts, 3)
    recipe = DedupRecipe(minhash=GENEROUS, buckets=2)
    one = dedup(paths, recipe, str(tmp_path / "one"))
    monkeypatch.setattr("pipelines.dedup.run.SHINGLES_PER_JUDGE", 2000)
    many = dedup(paths, recipe, str(tmp_path / "many"))
    assert many.digest == one.digest
    assert len(list((tmp_path / "many/work/verified/files").iterdir())) > 5


def test_sets_of_chosen_rows_span_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.dedup.signatures.BATCH_ROWS", 3)
    path = write(tmp_path / "in", [f"word{chr(97 + row)} " * (row + 1) for row in range(10)], 1)[0]
    minhash = DedupRecipe(minhash={"n": 1}).minhash
    assert [len(entry) for entry in sets_of(path, "text", np.array([0, 2, 3, 9]), minhash).to_pylist()] == [1, 1, 1, 1]
    assert len(sets_of(path, "text", np.array([], np.int64), minhash)) == 0
