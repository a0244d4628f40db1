"""Classifiers separate what they were trained to separate; buckets are the weighted percentiles they claim to be."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import mannwhitneyu, rankdata

from filters.classifier import FastText, SignalModel, as_line, auc, example, mean_rank, reliability, train_fasttext
from pipelines.buckets import BINS, BucketRecipe, bin_of, bucket, ranks_of
from pipelines.cluster import Cluster
from pipelines.errors import UserError
from pipelines.recipe import Recipe, load_recipe
from pipelines.stage import Stage, run_stage
from pipelines.train_classifier import ClassifierRecipe, train_classifier

GOOD_WORDS = "theorem proof energy history analysis cell function river water measure planet language".split()
OTHER_WORDS = "click buy sale login free offer shipping cookie subscribe share menu cart".split()
COMMON = "the a of and to in is it that for on with".split()


class Backwards(Cluster):
    """Parts in reverse order, each shipped as a worker would get it: what differs between worker counts, without starting any."""

    def map(self, function, items):
        for index in reversed(range(len(items))):
            shipped, item = pickle.loads(pickle.dumps((function, items[index])))
            yield index, shipped(item)


def texts(draw, vocabulary, count):
    """Short documents, 30 % of whose words are telling."""
    return [" ".join(draw.choice(vocabulary if draw.random() < 0.3 else COMMON) for _ in range(int(draw.integers(10, 80)))) for _ in range(count)]


class _Rows(Recipe):
    key: str


def dataset(path, rows, key):
    """Rows as one of our datasets with two parts."""

    def run(payload, config, output):
        half = rows[payload["half"] :: 2]
        output.read(len(half))
        output.write(pa.Table.from_pylist(half))

    plan = [{"half": 0}, {"half": 1}]
    return run_stage(Stage(name="rows", version=1, plan=lambda inputs, config: plan, run=run), [], _Rows(key=key), str(path)).uri


def documents(draw, vocabulary, count, prefix, shift):
    return [
        {"id": f"{prefix}{n}", "text": text, "signals": {"stops": float(draw.normal(shift)), "lines": int(draw.integers(1, 9)), "flat": 1.0}}
        for n, text in enumerate(texts(draw, vocabulary, count))
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    draw = np.random.default_rng(6)
    good = dataset(folder / "good", documents(draw, GOOD_WORDS, 400, "g", 1.0), "good")
    other = dataset(folder / "other", documents(draw, OTHER_WORDS, 400, "o", -1.0), "other")
    recipe = ClassifierRecipe(dimensions=8, buckets=1000)
    return train_classifier([good], [other], recipe, str(folder / "model")), good, other, recipe


def write_examples(path, good, other):
    lines = [example(text, is_good) for is_good, texts in ((True, good), (False, other)) for text in texts]
    path.write_text("".join(lines[row] for row in np.random.default_rng(0).permutation(len(lines))), encoding="utf-8")
    return path


def ensemble(model, **more):
    files = {path.rpartition("/")[2]: path for path in model.files}
    members = [{"name": "words", "path": files["fasttext.bin"]}, {"name": "signals", "kind": "signals", "path": files["signals.json"]}]
    return BucketRecipe(classifiers=members, **more)


def test_training_is_measured_and_repeatable(trained, tmp_path):
    model, good, other, recipe = trained
    assert [path.rpartition("/")[2] for path in model.files] == ["calibration.json", "fasttext.bin", "signals.json"]
    assert model.counters["auc_fasttext"] > 0.99 and 0.85 < model.counters["auc_signals"] < 0.99
    assert model.counters["held_out"] + model.counters["good"] + model.counters["other"] == 800
    assert train_classifier([good], [other], recipe, str(tmp_path / "again")).digest == model.digest


def ranks_oracle(values, size):
    """Sort, accumulate bytes; the middle of each run of equal values is its rank."""
    return np.array([(size[values < one].sum() + size[values == one].sum() / 2) / size.sum() for one in values])


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_buckets_are_weighted_percentiles(combine, trained, tmp_path):
    model, good, other, _ = trained
    recipe = ensemble(model, combine=combine)
    result = bucket([good, other], recipe, str(tmp_path / "out"))
    frame = result.scan().collect()
    assert frame.height == result.rows == 800 and result.rejected_rows == 0 and {"id", "text", "signals"} <= set(frame.columns)
    size = frame["text"].str.len_bytes().to_numpy().astype(float)
    members = [ranks_oracle(bin_of(frame["quality_scores"].struct.field(name).to_numpy()), size) for name in ("words", "signals")]
    rank = np.max(members, axis=0) if combine == "max" else ranks_oracle(np.floor(np.mean(members, axis=0) * BINS), size)
    assert np.allclose(frame["quality_rank"].to_numpy(), rank, atol=1e-6)
    assert np.array_equal(frame["quality_bucket"].to_numpy(), np.floor(rank * 20).astype(int))
    starts = {"low": 0, "medium_low": 7, "medium": 12, "medium_high": 16, "high": 18}
    for number, level in frame.select("quality_bucket", "quality_level").rows():
        assert level == max((start, name) for name, start in starts.items() if start <= number)[1]
    means = frame.with_columns(good=pl.col("id").str.starts_with("g")).group_by("good").agg(pl.col("quality_bucket").mean()).sort("good")
    assert means["quality_bucket"][1] > means["quality_bucket"][0] + 5
    assert [result.counters[f"bytes.{number}"] for number in range(20)] == [size[frame["quality_bucket"].to_numpy() == number].sum() for number in range(20)]
    if combine == "mean":  # equal shares, as far as one document allows
        assert max(result.counters[f"bytes.{number}"] for number in range(20)) <= size.sum() / 20 + size.max()
    assert bucket([good, other], recipe, str(tmp_path / "spread"), Backwards()).digest == result.digest


def test_cuts_are_numpys_weighted_percentiles(tmp_path):
    """One classifier, distinct scores: buckets are where numpy's inverted weighted distribution puts them, up to the document on the border."""
    draw = np.random.default_rng(10)
    scores, size = draw.beta(0.5, 0.5, 2000), draw.integers(1, 5000, 2000).astype(float)
    rank = ranks_of(np.bincount(bin_of(scores), size, BINS))[bin_of(scores)]
    cuts = np.quantile(scores, np.arange(1, 20) / 20, method="inverted_cdf", weights=size)
    expected = np.searchsorted(cuts, scores, side="right")
    assert (np.abs(np.floor(rank * 20) - expected) <= 1).all() and (np.floor(rank * 20) != expected).sum() <= 40  # two documents a cut
    exact = np.array([(size[scores < one].sum() + size[scores == one].sum() / 2) / size.sum() for one in scores])
    fullest = np.bincount(bin_of(scores), size, BINS).max() / size.sum()
    assert np.abs(rank - exact).max() <= fullest / 2  # the error that `rank_error` states


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, BINS - 1), st.floats(0.5, 100)), min_size=1, max_size=50), st.integers(2, 25))
def test_ranks_divide_the_mass(entries, buckets):
    weights = np.zeros(BINS)
    for place, weight in entries:
        weights[place] += weight
    ranks = ranks_of(weights)
    assert (np.diff(ranks) >= 0).all() and ranks[0] >= 0 and ranks[-1] <= 1 and not ranks_of(np.zeros(BINS)).any()
    share = np.bincount(np.minimum(np.floor(ranks * buckets), buckets - 1).astype(int), weights, buckets) / weights.sum()
    assert (share <= 1 / buckets + weights.max() / weights.sum() + 1e-9).all()


def test_bins_keep_the_order_where_probabilities_saturate():
    scores = np.array([0, 1e-30, 1e-6, 1e-4, 0.5, 0.9999, 0.99999, 1.0], np.float32)
    bins = bin_of(scores)
    assert (np.diff(bins[1:]) > 0).all() and bins[0] == 0 == bins[1] and bins[-1] == BINS - 1


def test_signal_model_is_ridge_logistic_regression():
    draw = np.random.default_rng(7)
    values = draw.normal(size=(400, 3)) * [1, 10, 0.1]
    good = values @ [1.0, -0.1, 5.0] + draw.logistic(size=400) > 0
    signals = pa.StructArray.from_arrays([pa.array(column) for column in values.T], ["a", "b", "c"])
    model = SignalModel.train(signals, good, ridge=2.0)
    x = np.arcsinh(values)
    x = (x - x.mean(0)) / x.std(0)
    x = np.column_stack((x, np.ones(400)))

    def loss(w):  # negative log likelihood + ridge / 2 on all but the bias
        return np.logaddexp(0, np.where(good, -1, 1) * (x @ w)).sum() + w[:-1] @ w[:-1]

    oracle = minimize(loss, np.zeros(4), tol=1e-10).x
    assert np.allclose(model.weights, oracle, atol=1e-4)
    assert np.allclose(SignalModel.loads(model.dumps()).scores(signals), 1 / (1 + np.exp(-x @ oracle)), atol=1e-4)


def test_auc_is_the_mann_whitney_statistic():
    draw = np.random.default_rng(8)
    scores, good = draw.integers(0, 20, 300).astype(float), draw.random(300) < 0.3
    assert np.isclose(auc(scores, good), mannwhitneyu(scores[good], scores[~good]).statistic / (good.sum() * (~good).sum()))
    assert np.isnan(auc(scores, np.ones(300, bool)))
    metrics = pytest.importorskip("sklearn.metrics")
    assert np.isclose(auc(scores, good), metrics.roc_auc_score(good, scores))


def test_the_ensemble_is_the_mean_of_ranks_and_reliability_counts_everyone_once():
    draw = np.random.default_rng(9)
    columns = [draw.integers(0, 30, 200) / 30, draw.random(200)]
    assert np.allclose(mean_rank(columns), np.mean([(rankdata(column) - 0.5) / 200 for column in columns], axis=0))
    good = draw.random(200) < columns[1]
    bins = reliability(columns[1], good, 8)
    assert sum(entry["documents"] for entry in bins) == 200 and np.isclose(sum(entry["good"] * entry["documents"] for entry in bins), good.sum())
    assert (np.diff([entry["score"] for entry in bins]) > 0).all()


def test_what_takes_part_depends_on_ids_alone(tmp_path):
    """The same documents in other datasets, in another order, give the same model; `limit` keeps the first by hash."""
    draw = np.random.default_rng(11)
    good, other = documents(draw, GOOD_WORDS, 120, "g", 1.0), documents(draw, OTHER_WORDS, 120, "o", -1.0)
    recipe = ClassifierRecipe(dimensions=4, buckets=100, limit=60, held_out=0.3)
    whole = train_classifier([dataset(tmp_path / "g", good, "g")], [dataset(tmp_path / "o", other, "o")], recipe, str(tmp_path / "whole"))
    halves = [dataset(tmp_path / f"g{half}", good[::-1][half::2], f"g{half}") for half in range(2)]
    split = train_classifier(halves, [dataset(tmp_path / "p", other[::-1], "p")], recipe, str(tmp_path / "split"))
    assert whole.counters["good"] + whole.counters["other"] + whole.counters["held_out"] == 120
    assert Path(f"{whole.uri}/files/fasttext.bin").read_bytes() == Path(f"{split.uri}/files/fasttext.bin").read_bytes()


def test_texts_cannot_smuggle_labels(tmp_path):
    assert as_line("a\n__label__good  b\t") == "a labelgood b"
    good, other = ["fine words here " * 5] * 20, ["poor __label__good stuff " * 5] * 20
    train_fasttext(write_examples(tmp_path / "examples", good, other), tmp_path / "m.bin", dimensions=4, buckets=100)
    model = FastText(tmp_path / "m.bin")
    scores = model.scores(["fine words here", "poor stuff", "", None, "  \n "])
    assert scores[0] > 0.5 > scores[1] and scores[2:].tolist() == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples", "m.bin"]


def test_mistakes_are_told_in_one_line(trained, tmp_path):
    model, good, _, _ = trained
    with pytest.raises(UserError, match="no such file"):
        bucket([good], BucketRecipe(classifiers=[{"name": "x", "path": str(tmp_path / "absent.bin")}]), str(tmp_path / "1"))
    with pytest.raises(UserError, match="has no label __label__hq"):
        bucket([good], BucketRecipe(classifiers=[{"name": "x", "path": f"{model.uri}/files/fasttext.bin", "label": "__label__hq"}]), str(tmp_path / "2"))
    bare = str(tmp_path / "bare.parquet")
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), bare)
    with pytest.raises(UserError, match="no column 'signals'"):
        bucket([bare], ensemble(model), str(tmp_path / "3"))
    with pytest.raises(UserError, match="same name"):
        load_recipe(BucketRecipe, {"classifiers": [{"name": "x", "path": "p"}] * 2})
    with pytest.raises(UserError, match="too few other"):
        empty = dataset(tmp_path / "one", [{"id": "1", "text": "alone"}, {"id": "2", "text": "together"}], "few")
        train_classifier([good], [empty], ClassifierRecipe(), str(tmp_path / "4"))
    assert load_recipe(BucketRecipe, "bucket").buckets == 20 and load_recipe(ClassifierRecipe, "train-classifier").epochs == 5


def test_textbooks_are_told_from_novels(shared_data, tmp_path):
    """Real text: fastText trained on textbook pages against pages of novels, by chapters it has not seen."""
    pages = {}
    for name in ("openstax-textbooks", "english-novels"):
        with gzip.open(shared_data / f"text/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            whole = [json.loads(line)["text"] for line, _ in zip(file, range(300), strict=False)]
        pages[name] = [text[start : start + 1500] for text in whole for start in range(0, min(len(text), 60_000), 6000)][:400]
    train, test = (slice(0, 300), slice(300, 400))
    examples = write_examples(tmp_path / "examples", *(pages[name][train] for name in pages))
    train_fasttext(examples, tmp_path / "m.bin", dimensions=16, buckets=2000, epochs=25)
    held = pages["openstax-textbooks"][test] + pages["english-novels"][test]
    assert auc(FastText(tmp_path / "m.bin").scores(held), np.repeat([True, False], [100, len(held) - 100])) > 0.97
