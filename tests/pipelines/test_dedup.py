"""Duplicates: what is found agrees with datasketch, networkx, exact Jaccard and the theory, whatever the workers and buckets."""

import gzip
import itertools
import json
import shutil

import networkx
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.minhash import match_probability
from kernels.ngrams import Normalisation, ngrams_of, ngrams_reference
from pipelines.cluster import open_cluster
from pipelines.dedup import DedupRecipe, dedup, rehydration_weight
from pipelines.dedup.components import contract
from pipelines.dedup.urls import canonical_url
from pipelines.errors import UserError
from pipelines.recipe import load_recipe


def write_parts(folder, rows, parts=3):
    """Rows (dicts) as Parquet files, dealt out in turn; returns their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for part in range(parts):
        path = folder / f"part-{part:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[part::parts]), path)
        paths.append(str(path))
    return paths


def random_words(draw, count):
    letters = draw.integers(0, 26, (count, 6)) + ord("a")  # no digits: the default normalisation reads every number as 0
    return [bytes(word.tolist()).decode() for word in letters.astype(np.uint8)]


def clusters_of(dataset):
    """The clusters of size > 1 as a set of frozensets of ids."""
    columns = ["id", "cluster_id", "cluster_size"]
    frame = pl.concat([dataset.scan(columns).collect(), dataset.scan_rejected(columns).collect()])
    groups = frame.filter(pl.col("cluster_size") > 1).group_by("cluster_id").agg("id", pl.col("cluster_size").first())
    assert all(len(ids) == size for ids, size in zip(groups["id"], groups["cluster_size"], strict=True))
    return {frozenset(ids) for ids in groups["id"]}


@pytest.fixture(scope="module")
def corpus():
    """200 families of a random text and edits of it (a word replaced every so often), and 100 loners."""
    draw = np.random.default_rng(11)
    rows = []
    for family in range(300):
        words = random_words(draw, int(draw.integers(60, 200)))
        for copy in range(1 if family >= 200 else int(draw.integers(2, 6))):
            edited = list(words)
            for place in draw.integers(0, len(words), copy * int(draw.integers(0, 4))):
                edited[place] = random_words(draw, 1)[0]
            row = {"id": f"{family:03d}-{copy}", "text": " ".join(edited), "captured_at": f"2024-01-{copy + 1:02d}"}
            rows.append({**row, "score": float(draw.random())})
    draw.shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def deduplicated(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dedup")
    recipe = DedupRecipe(minhash={"permutations": "affine64"}, exact={"url": False})
    return dedup(write_parts(folder / "in", corpus), recipe, str(folder / "out"))


def test_every_row_stays_or_leaves_with_a_reason(corpus, deduplicated):
    rejected = deduplicated.scan_rejected().collect()
    kept = deduplicated.scan().collect()
    assert deduplicated.rows_in == len(corpus) == kept.height + rejected.height
    assert set(rejected["reason"]) == {"exact.text", "minhash.near_duplicate"}
    assert set(kept["id"]).isdisjoint(rejected["id"]) and set(rejected["duplicate_of"]) <= set(kept["id"])
    texts = {row["id"]: row["text"] for row in corpus}
    for row in rejected.iter_rows(named=True):
        assert (row["reason"] == "exact.text") == (texts[row["id"]] == texts[row["duplicate_of"]])
    assert {"id", "text", "captured_at", "score"} <= set(kept.columns)


def test_clusters_equal_datasketch_and_networkx(corpus, deduplicated):
    lsh = MinHashLSH(num_perm=112, params=(14, 8))
    graph = networkx.Graph()
    for row in corpus:
        sketch = MinHash(num_perm=112, seed=1, scheme="affine64", hashfunc=lambda gram: gram)
        sketch.update_batch(ngrams_reference(row["text"], 5))
        graph.add_node(row["id"])
        graph.add_edges_from((row["id"], other) for other in lsh.query(sketch))
        lsh.insert(row["id"], sketch)
    expected = {frozenset(ids) for ids in networkx.connected_components(graph) if len(ids) > 1}
    assert len(expected) > 150
    assert clusters_of(deduplicated) == expected


def test_buckets_workers_and_input_order_change_nothing(corpus, deduplicated, tmp_path):
    recipe = {"minhash": {"permutations": "affine64"}, "exact": {"url": False}}
    paths = write_parts(tmp_path / "in", corpus)
    with open_cluster(2) as cluster:
        spread = dedup(paths, DedupRecipe(**recipe), str(tmp_path / "spread"), cluster)
    many = dedup(paths, DedupRecipe(**recipe, buckets=7), str(tmp_path / "many"))
    assert spread.digest == many.digest == deduplicated.digest
    turned = dedup(paths[::-1], DedupRecipe(**recipe), str(tmp_path / "turned"))
    assert set(turned.scan(["id"]).collect()["id"]) == set(deduplicated.scan(["id"]).collect()["id"])


def test_a_finished_folder_is_returned_or_refused(corpus, deduplicated, tmp_path):
    recipe = DedupRecipe(minhash={"permutations": "affine64"}, exact={"url": False})
    paths, out = write_parts(tmp_path / "in", corpus), str(tmp_path / "out")
    assert dedup(paths, recipe, out).digest == deduplicated.digest
    shutil.rmtree(tmp_path / "out/work")  # only there to be resumed from
    assert dedup(paths, recipe, out).digest == deduplicated.digest and not (tmp_path / "out/work").exists()
    with pytest.raises(UserError, match="another run"):
        dedup(paths, DedupRecipe(), out)


def test_each_kind_alone(corpus, deduplicated, tmp_path):
    paths = write_parts(tmp_path / "in", corpus)
    exact = dedup(paths, DedupRecipe(minhash=None), str(tmp_path / "exact"))
    texts = [row["text"] for row in corpus]
    assert exact.reasons == {"exact.text": len(texts) - len(set(texts))}
    near = dedup(paths, DedupRecipe(minhash={"permutations": "affine64"}, exact={"url": False, "text": False}), str(tmp_path / "near"))
    assert set(near.reasons) == {"minhash.near_duplicate"} and clusters_of(near) == clusters_of(deduplicated)


def test_character_shingles_find_copies_with_other_line_breaks(tmp_path):
    draw = np.random.default_rng(12)
    rows = [{"id": str(n), "text": " ".join(random_words(draw, 80))} for n in range(20)]
    rows += [{"id": f"copy-{n}", "text": rows[n]["text"].replace(" ", "\n\n", 40)} for n in range(5)]
    recipe = load_recipe(DedupRecipe, {"minhash": "nemotron_cc"})
    result = dedup(write_parts(tmp_path / "in", rows), recipe, str(tmp_path / "out"))
    assert clusters_of(result) == {frozenset({str(n), f"copy-{n}"}) for n in range(5)}


def test_survivor_is_the_first_by_the_sort_key(corpus, tmp_path):
    paths = write_parts(tmp_path / "in", corpus)
    result = dedup(paths, DedupRecipe(exact={"url": False}, survivor=("-score",)), str(tmp_path / "best"))
    score = {row["id"]: row["score"] for row in corpus}
    for row in result.scan_rejected().collect().iter_rows(named=True):
        assert score[row["duplicate_of"]] > score[row["id"]]
    with pytest.raises(UserError, match="no column 'quality'"):
        dedup(paths, DedupRecipe(survivor=("-quality",)), str(tmp_path / "absent"))


def test_interrupted_run_is_finished_with_the_same_bytes(corpus, deduplicated, tmp_path):
    """Stop after each number of parts in turn, anywhere in the chain; the same call finishes the rest."""
    recipe = DedupRecipe(minhash={"permutations": "affine64"}, exact={"url": False})
    paths = write_parts(tmp_path / "in", corpus)

    class Stop(Exception):
        pass

    for limit in (1, 4, 6, 9, 12):
        seen = itertools.count()

        def stop(event, seen=seen, limit=limit):
            if event.done and next(seen) == limit:
                raise Stop

        out = str(tmp_path / f"out-{limit}")
        with pytest.raises(Stop):
            dedup(paths, recipe, out, progress=stop)
        assert dedup(paths, recipe, out).digest == deduplicated.digest


def test_url_captures_keep_the_newest(tmp_path):
    draw = np.random.default_rng(5)
    text = " ".join(random_words(draw, 50))
    rows = [
        {"id": "old", "url": "http://www.example.org/a/?utm_source=x&b=2&a=1#top", "text": text, "captured_at": "2020-01-01"},
        {"id": "new", "url": "https://example.org/a?a=1&b=2", "text": "short and new, " * 4, "captured_at": "2024-01-01"},
        {"id": "other", "url": "https://example.org/A?a=1&b=2", "text": text, "captured_at": "2019-01-01"},
        {"id": "none", "url": None, "text": "no address here at all", "captured_at": None},
        {"id": "none2", "url": None, "text": "nor is there one here", "captured_at": None},
    ]
    result = dedup(write_parts(tmp_path / "in", rows, 2), DedupRecipe(), str(tmp_path / "out"))
    rejected = result.scan_rejected().collect().to_dicts()
    assert [(row["id"], row["reason"], row["duplicate_of"]) for row in rejected] == [("old", "exact.url", "new")]
    # The text of the capture that left is no reason to drop another page that has it.
    assert set(result.scan(["id"]).collect()["id"]) == {"new", "other", "none", "none2"}
    only = dedup(write_parts(tmp_path / "in", rows, 2), DedupRecipe(minhash=None, exact={"text": False}), str(tmp_path / "only"))
    assert only.reasons == {"exact.url": 1}


def test_texts_without_words_and_empty_texts(tmp_path):
    rows = [{"id": f"{n}", "text": text} for n, text in enumerate(["", "", "!!!", "???", None, "one", "one"])]
    result = dedup(write_parts(tmp_path / "in", rows, 2), DedupRecipe(), str(tmp_path / "out"))
    assert clusters_of(result) == {frozenset("014"), frozenset("56")}


def test_every_labelled_pair_is_found_and_none_invented(shared_data, tmp_path):
    with gzip.open(shared_data / "dedup/minhash-articles_1000.train.gz", "rt", encoding="utf-8") as file:
        rows = [dict(zip(("id", "text"), line.rstrip("\n").split(" ", 1), strict=True)) for line in file]
    truth = {frozenset(line.split()) for line in (shared_data / "dedup/minhash-articles_1000.truth").read_text().splitlines()}
    result = dedup(write_parts(tmp_path / "in", rows), DedupRecipe(), str(tmp_path / "out"))
    assert clusters_of(result) == truth and len(truth) == 10


def test_recall_follows_the_theory(tmp_path):
    """Pairs of known Jaccard similarity: a block of words replaced at the end of a text of n words."""
    draw = np.random.default_rng(3)
    pairs, shingles = 250, 196
    for similarity in (0.6, 0.7, 0.75, 0.8, 0.9):
        changed = round(shingles * (1 - similarity) / (1 + similarity))  # J = (S - c) / (S + c)
        rows = []
        for pair in range(pairs):
            words = random_words(draw, shingles + 4)
            edited = words[: len(words) - changed] + random_words(draw, changed)
            rows += [{"id": f"{pair}a", "text": " ".join(words)}, {"id": f"{pair}b", "text": " ".join(edited)}]
        left, right = (set(ngrams_reference(row["text"], 5)) for row in rows[:2])
        exact = len(left & right) / len(left | right)
        result = dedup(write_parts(tmp_path / f"in-{similarity}", rows, 1), DedupRecipe(), str(tmp_path / f"out-{similarity}"))
        expected = match_probability(exact, 14, 8)
        error = 4 * np.sqrt(expected * (1 - expected) / pairs) + 1 / pairs  # four standard deviations of a binomial share
        assert abs(result.rejected_rows / pairs - expected) <= error, similarity


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60))
def test_contract_equals_networkx(edges):
    left, right = (np.array([edge[side] for edge in edges], np.uint64) for side in (0, 1))
    nodes, roots = contract(left, right)
    graph = networkx.Graph(edges)
    expected = {node: min(ids) for ids in networkx.connected_components(graph) for node in ids if node != min(ids)}
    assert dict(zip(nodes.tolist(), roots.tolist(), strict=True)) == expected


def test_components_of_long_chains_over_many_buckets(tmp_path):
    """Chains of documents, each like the next only: the worst case for star contraction."""
    draw = np.random.default_rng(9)
    rows = []
    for chain in range(4):
        words = random_words(draw, 100)
        for link in range(30):
            rows.append({"id": f"{chain}-{link:02d}", "text": " ".join(words)})
            words = words[5:] + random_words(draw, 5)  # Jaccard of neighbours 91/101, of the ends 0
    draw.shuffle(rows)
    recipe = DedupRecipe(minhash={"bands": 40, "rows": 4}, buckets=5)
    result = dedup(write_parts(tmp_path / "in", rows), recipe, str(tmp_path / "out"))
    assert {frozenset(f"{chain}-{link:02d}" for link in range(30)) for chain in range(4)} == clusters_of(result)
    assert len(list((tmp_path / "out/work").glob("stars-*"))) > 1


def test_presets_and_mistakes():
    assert DedupRecipe(minhash="finepdfs").minhash.bands == 32
    assert DedupRecipe(minhash={"preset": "nemotron_cc", "bands": 10}).minhash.model_dump()["n"] == 24
    assert DedupRecipe().minhash == DedupRecipe(minhash="fineweb").minhash == load_recipe(DedupRecipe, "dedup").minhash
    with pytest.raises(UserError, match="unknown MinHash preset"):
        load_recipe(DedupRecipe, {"minhash": "fineweeb"})
    with pytest.raises(UserError, match="did you mean survivor"):
        load_recipe(DedupRecipe, {"survivors": []})
    with pytest.raises(UserError, match="no dataset here"):
        dedup(["/nonexistent/dataset"], DedupRecipe(), "/nonexistent/out")


def test_rehydration_weights_are_fineweb2s():
    sizes = np.array([1, 2, 3, 4, 5, 99, 100, 999, 1000, 10**6])
    assert rehydration_weight(sizes).tolist() == [1, 2, 3, 3, 5, 5, 8, 8, 1, 1]
    assert rehydration_weight(4) == 3
    with pytest.raises(ValueError):
        rehydration_weight(0)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("http://Example.org:80/x", "https://www.example.org/x/", True),
        ("https://example.org/x?id=1", "https://example.org/x?id=2", False),
        ("https://example.org/?fbclid=1", "https://example.org", True),
        ("https://example.org/X", "https://example.org/x", False),
        ("https://example.org:8080/x", "https://example.org/x", False),
        ("http://[broken", "http://[broken", True),
    ],
)
def test_canonical_url(left, right, same):
    assert (canonical_url(left) == canonical_url(right)) is same


def test_openstax_revisions_are_found_by_their_jaccard(shared_data, tmp_path):
    """Real edits: of 202 old and new textbook pages with known Jaccard, the theory's share is found, to four standard deviations."""
    with gzip.open(shared_data / "dedup/openstax-revision-pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    rows = [{"id": f"{pair['id']}|{side}", "text": pair[side]} for pair in pairs for side in ("old", "new")]
    result = dedup(write_parts(tmp_path / "in", rows), DedupRecipe(minhash={"fold_digits": False, "strip_marks": False}), str(tmp_path / "out"))
    cluster = {member: ids for ids in clusters_of(result) for member in ids}
    found = sum(f"{pair['id']}|new" in cluster.get(f"{pair['id']}|old", ()) for pair in pairs)
    rules = Normalisation(strip_marks=False, fold_digits=False)
    similarities = []
    for pair in pairs:
        old, new = (set(ngrams_of(pair[side], 5, rules).tolist()) for side in ("old", "new"))
        similarities.append(len(old & new) / len(old | new))
    expected = match_probability(np.array(similarities), 14, 8)
    error = 4 * np.sqrt((expected * (1 - expected)).sum()) + 1
    assert abs(found - expected.sum()) <= error
