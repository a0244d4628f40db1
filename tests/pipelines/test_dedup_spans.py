"""Repeated text inside documents: what is cut equals brute force and a suffix array, and every byte is accounted for."""

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ngrams import Normalisation
from kernels.segments import pieces_reference
from pipelines.cluster import open_cluster
from pipelines.dedup import chunks as chunking
from pipelines.dedup.spans import SpanRecipe, dedup_spans
from pipelines.dedup.spans import run as running
from pipelines.dedup.spans.edit import compose
from pipelines.errors import UserError
from pipelines.recipe import load_recipe, recipe_names


def write_parts(folder, rows, parts=3):
    folder.mkdir(exist_ok=True, parents=True)
    paths = []
    for part in range(parts):
        path = folder / f"part-{part:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[part::parts], schema=pa.schema([(name, pa.string()) for name in rows[0]])), path)
        paths.append(str(path))
    return paths


def in_order(rows, parts=3):
    """Rows as the pipeline meets them."""
    return [row for part in range(parts) for row in rows[part::parts]]


def removed(dataset):
    """id -> [(start, end)], kept rows only."""
    frame = dataset.scan(["id", "removed_spans"]).collect()
    return {name: [(span["start"], span["end"]) for span in spans] for name, spans in frame.iter_rows()}


def mask_spans(text, gone):
    """Spans of whole characters whose bytes are all in `gone`."""
    spans, place = [], 0
    for character in text:
        width = len(character.encode())
        if all(at in gone for at in range(place, place + width)):
            if spans and spans[-1][1] == place:
                spans[-1] = (spans[-1][0], place + width)
            else:
                spans.append((place, place + width))
        place += width
    return spans


def brute_force(rows, k, keep):
    """What must be cut, by comparing all windows of k bytes as strings."""
    seen = defaultdict(list)
    for number, row in enumerate(rows):
        data = row["text"].encode()
        for at in range(len(data) - k + 1):
            seen[data[at : at + k]].append((number, at))
    leave, stay = defaultdict(set), defaultdict(set)
    for places in seen.values():
        if len(places) > 1:
            for order, (number, at) in enumerate(places):
                (stay if order == 0 and keep == "first" else leave)[number].update(range(at, at + k))
    return {row["id"]: mask_spans(row["text"], leave[number] - stay[number]) for number, row in enumerate(rows)}


def random_rows(draw, count, pieces=6):
    """Documents glued together from a few shared phrases and noise."""
    phrases = ["".join(draw.choice("abé漢 \n") for _ in range(draw.randint(2, 25))) for _ in range(5)] + ["----------"]
    noise = lambda: "".join(draw.choice("cdefgh") for _ in range(draw.randint(0, 12)))
    return [{"id": f"{n}", "text": "".join(draw.choice([*phrases, noise()]) for _ in range(draw.randint(0, pieces)))} for n in range(count)]


@pytest.mark.parametrize("keep", ["none", "first"])
def test_substrings_equal_brute_force(tmp_path, keep):
    for seed, k in itertools.product(range(4), (4, 9)):
        rows = random_rows(random.Random(seed), 12)
        recipe = SpanRecipe(unit="byte", length=k, count="occurrences", keep=keep, min_characters=1)
        dataset = dedup_spans(write_parts(tmp_path / f"in-{seed}-{k}", rows), recipe, str(tmp_path / f"out-{seed}-{k}"))
        expected = brute_force(in_order(rows), k, keep)
        emptied = {name for name, spans in expected.items() if sum(b - a for a, b in spans) == len({r["id"]: r["text"].encode() for r in rows}[name]) > 0}
        assert removed(dataset) == {name: spans for name, spans in expected.items() if name not in emptied}
        assert set(dataset.scan_rejected(["id"]).collect()["id"]) == emptied


def test_substrings_equal_a_suffix_array(tmp_path):
    pydivsufsort = pytest.importorskip("pydivsufsort", reason="pip install pydivsufsort: the suffix array to compare with")
    draw = random.Random(7)
    vocabulary = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(80)]
    passages = [" ".join(draw.choices(vocabulary, k=40)) for _ in range(12)]
    rows = [{"id": f"{n}", "text": " ".join(draw.choice([*passages, *vocabulary]) for _ in range(30))} for n in range(60)]
    dataset = dedup_spans(write_parts(tmp_path / "in", rows), SpanRecipe(unit="byte", count="occurrences", keep="none", min_characters=1), str(tmp_path / "out"))
    ordered = in_order(rows)
    data = b"".join(row["text"].encode() + b"\0" for row in ordered)
    bounds = np.cumsum([0] + [len(row["text"].encode()) + 1 for row in ordered])
    suffixes = pydivsufsort.divsufsort(data)
    common = pydivsufsort.kasai(data, suffixes)  # of each suffix and the next in order
    longest = np.zeros(len(data) + 1, np.int64)
    longest[suffixes[:-1]] = common[:-1]
    longest[suffixes[1:]] = np.maximum(longest[suffixes[1:]], common[:-1])
    gone = np.zeros(len(data), bool)
    document_end = np.repeat(bounds[1:] - 1, np.diff(bounds))  # matches end before the separator
    for at in np.flatnonzero(np.minimum(longest[:-1], document_end - np.arange(len(data))) >= 100):
        gone[at : at + 100] = True
    expected = {row["id"]: mask_spans(row["text"], set(np.flatnonzero(gone[a:b]).tolist())) for row, a, b in zip(ordered, bounds[:-1], bounds[1:])}
    assert sum(map(len, expected.values())) > 50
    kept = removed(dataset)
    assert kept == {name: expected[name] for name in kept}
    assert all(sum(b - a for a, b in expected[name]) > 0 for name in dataset.scan_rejected(["id"]).collect()["id"])


def test_tokens_are_cut_at_token_borders(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["[UNK]", "é", "漢字", *"abcdefghij"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = [{"id": "1", "text": "a b é 漢字  c d e"}, {"id": "2", "text": "j j é 漢字 c i"}, {"id": "3", "text": "漢字 c é"}]
    recipe = SpanRecipe(unit="token", length=3, count="occurrences", min_characters=1)
    with pytest.raises(UserError, match="needs a tokenizer"):
        dedup_spans(write_parts(tmp_path / "in", rows), recipe, str(tmp_path / "out"))
    dataset = dedup_spans(write_parts(tmp_path / "in", rows), recipe, str(tmp_path / "out"), tokenizer=str(tmp_path))
    assert dict(dataset.scan(["id", "text"]).collect().iter_rows()) == {"1": rows[0]["text"], "2": "j j  i", "3": "漢字 c é"}


@pytest.mark.parametrize("unit", ["line", "paragraph", "sentence"])
@pytest.mark.parametrize(("count", "keep", "least"), [("documents", "first", 2), ("occurrences", "none", 3), ("hosts", "first", 2)])
def test_lines_equal_counting_strings(tmp_path, unit, count, keep, least):
    draw = random.Random(5)
    lines = [f"This is {word} line, number {n}." for n, word in enumerate(["the", "a", "some", "that"])] + ["short"]
    rows = []
    for n in range(40):
        body = [draw.choice([*lines, f"Only here stands {draw.random()} and {n}x{'abcdefgh'[n % 8]}."]) for _ in range(draw.randint(1, 6))]
        rows.append({"id": f"{n:02d}", "host": f"h{n % 3}", "text": draw.choice(["\n", "\n\n", " "]).join(body)})
    recipe = SpanRecipe(unit=unit, length=1, count=count, keep=keep, min_count=least, min_characters=1, fold_digits=False)
    dataset = dedup_spans(write_parts(tmp_path / "in", rows), recipe, str(tmp_path / "out"))
    places = defaultdict(list)
    for row in in_order(rows):
        for key, start, end in pieces_reference(row["text"], unit, 1, 3, Normalisation(fold_digits=False)):
            places[key].append((row, start, end))
    gone = defaultdict(set)
    for some in places.values():
        counted = {"documents": len({row["id"] for row, *_ in some}), "occurrences": len(some), "hosts": len({row["host"] for row, *_ in some})}[count]
        if counted >= least:
            for row, start, end in some[1 if keep == "first" else 0 :]:
                gone[row["id"]].update(range(start, end))
    expected = {row["id"]: mask_spans(row["text"], gone[row["id"]]) for row in rows}
    kept = removed(dataset)
    assert kept == {name: expected[name] for name in kept} and any(expected.values())
    assert set(dataset.scan_rejected(["id"]).collect()["id"]) == {row["id"] for row in rows if len(gone[row["id"]]) == len(row["text"].encode())}


CORPUS = random_rows(random.Random(3), 60, pieces=30)
SUBSTRINGS = SpanRecipe(unit="byte", length=12, count="occurrences", min_characters=5)


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    return dedup_spans(write_parts(folder / "in", CORPUS), SUBSTRINGS, str(folder / "out"))


def test_every_byte_is_accounted_for(edited):
    original = {row["id"]: row["text"] for row in CORPUS}
    kept, rejected = edited.scan().collect(), edited.scan_rejected().collect()
    assert edited.rows_in == len(CORPUS) and rejected.height and set(rejected["reason"]) == {"repeated_substrings.too_short"}
    assert all(row["text"] == original[row["id"]] for row in rejected.iter_rows(named=True))  # as they entered
    for row in kept.iter_rows(named=True):
        data, place, left = original[row["id"]].encode(), 0, b""
        for span in row["removed_spans"]:
            assert span["copies"] >= 2
            left += data[place : span["start"]]
            place = span["end"]
        assert (left + data[place:]).decode() == row["text"]
        assert row["original_text_digest"] == (xxhash.xxh3_128_hexdigest(data) if row["removed_spans"] else None)


def test_one_copy_of_every_window_stays(edited):
    """With `keep: first`, nothing of 12 bytes that stood twice is gone from the corpus, and few of them stand twice in what is kept."""
    windows = lambda texts: Counter(data[at : at + 12] for text in texts for data in [text.encode()] for at in range(len(data) - 11))
    kept, rejected = (windows(frame.collect()["text"]) for frame in (edited.scan(["text"]), edited.scan_rejected(["text"])))
    repeated = {window for window, times in windows(row["text"] for row in CORPUS).items() if times > 1}
    assert len(repeated) > 400 and repeated <= kept.keys() | rejected.keys()
    assert sum(kept[window] > 1 for window in repeated) < 0.2 * len(repeated)


def test_chunks_buckets_and_workers_change_nothing(edited, tmp_path, monkeypatch):
    paths = write_parts(tmp_path / "in", CORPUS)
    with open_cluster(2) as cluster:
        spread = dedup_spans(paths, SUBSTRINGS, str(tmp_path / "spread"), cluster=cluster)
    assert spread.digest == edited.digest
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 300)
    monkeypatch.setattr(chunking, "OUTBOX_BYTES", 4000)
    monkeypatch.setattr(running, "UNITS_PER_BUCKET", 400)
    small = dedup_spans(paths, SUBSTRINGS, str(tmp_path / "small"))
    assert len(list((tmp_path / "small/work/units/files").iterdir())) > 10 and len(list((tmp_path / "small/work/repeats/files").iterdir())) > 3
    columns = ["id", "text", "removed_spans", "original_text_digest"]
    assert small.scan(columns).collect().equals(edited.scan(columns).collect())
    assert small.scan_rejected().collect().equals(edited.scan_rejected().collect())


def test_interrupted_run_is_finished_with_the_same_bytes(edited, tmp_path):
    """SIGKILL inside the n-th part that any step begins; the same call finishes the rest."""
    paths = write_parts(tmp_path / "in", CORPUS)
    for limit in (5, 9):
        out = str(tmp_path / f"out-{limit}")
        script = textwrap.dedent(f"""
            import os, signal, sys
            sys.path[:0] = [{os.getcwd()!r}]
            from pipelines.dedup.spans import SpanRecipe, dedup_spans
            from pipelines.stage import PartOutput
            begun, plain = [], PartOutput.__init__
            def dying(self, *arguments, **named):
                plain(self, *arguments, **named)
                begun.append(self)
                if len(begun) == {limit}:
                    os.kill(os.getpid(), signal.SIGKILL)
            PartOutput.__init__ = dying
            dedup_spans({paths!r}, SpanRecipe.model_validate_json({SUBSTRINGS.model_dump_json()!r}), {out!r})
        """)
        assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -signal.SIGKILL
        assert dedup_spans(paths, SUBSTRINGS, out).digest == edited.digest


def test_the_best_document_keeps_the_piece(tmp_path):
    shared = "This line stands in all of them."
    rows = [{"id": str(n), "day": f"2024-01-{day:02d}", "text": f"{shared}\nAnd this one only in number {'abc'[n]}."} for n, day in enumerate((3, 9, 5))]
    newest = dedup_spans(write_parts(tmp_path / "in", rows), SpanRecipe(survivor=("-day",), min_characters=1), str(tmp_path / "new"))
    longest = dedup_spans(write_parts(tmp_path / "in", rows), SpanRecipe(survivor=("absent?", "text_bytes", "day"), min_characters=1), str(tmp_path / "long"))
    holders = [{row["id"] for row in dataset.scan().collect().iter_rows(named=True) if shared in row["text"]} for dataset in (newest, longest)]
    assert holders == [{"1"}, {"0"}]


def test_two_passes_record_spans_of_the_first_original(tmp_path):
    rows = [{"id": f"{n}", "text": f"Shared line one of these.\nbody {'xyz'[n]} é {'pqr'[n] * 30}\n" + "0123456789" * 4} for n in range(3)]
    paths = write_parts(tmp_path / "in", rows)
    lines = dedup_spans(paths, SpanRecipe(min_words=5, min_characters=1), str(tmp_path / "lines"))
    both = dedup_spans([lines], SpanRecipe(unit="byte", length=30, count="occurrences", min_characters=1), str(tmp_path / "both"))
    assert any(len(spans) == 2 for spans in removed(both).values())
    for row in both.scan().collect().iter_rows(named=True):
        data = bytearray(rows[int(row["id"])]["text"].encode())
        assert row["original_text_digest"] in (None, xxhash.xxh3_128_hexdigest(bytes(data)))
        for span in reversed(row["removed_spans"]):
            del data[span["start"] : span["end"]]
        assert data.decode() == row["text"]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_composed_edits_equal_two_edits(data):
    def draw_spans(size):
        edges = sorted(data.draw(st.sets(st.integers(0, size), max_size=8)))
        return [(a, b, 2) for a, b in zip(edges[::2], edges[1::2])]

    def apply(values, spans):
        return [value for at, value in enumerate(values) if not any(a <= at < b for a, b, _ in spans)]

    size = data.draw(st.integers(0, 30))
    first = draw_spans(size)
    left = apply(range(size), first)
    second = draw_spans(len(left))
    assert apply(range(size), compose(first, second)) == apply(left, second)


def test_empty_and_missing_texts(tmp_path):
    rows = [{"id": str(n), "text": text} for n, text in enumerate([None, "", "\n\n", "- - -", "one line of words", "one line of words"])]
    for unit in ("line", "sentence", "byte"):
        dataset = dedup_spans(write_parts(tmp_path / f"in-{unit}", rows), SpanRecipe(unit=unit, length=1 if unit != "byte" else 8), str(tmp_path / unit))
        assert dataset.scan_rejected(["id"]).collect()["id"].to_list() == ["5"]
        texts = dict(dataset.scan(["id", "text"]).collect().iter_rows())
        assert texts == {row["id"]: row["text"] for row in rows[:5]}


def test_recipes_and_mistakes(tmp_path):
    for name in recipe_names():
        if name.startswith("dedup-") and name != "dedup-semantic":
            load_recipe(SpanRecipe, name)
    assert load_recipe(SpanRecipe, None, ["preset=llama3"]).min_count == 7
    assert load_recipe(SpanRecipe, {"preset": "c4"}, ["keep=none"]).keep == "none"
    with pytest.raises(UserError, match="unknown preset 'c5'"):
        load_recipe(SpanRecipe, {"preset": "c5"})
    paths = write_parts(tmp_path / "in", [{"id": "1", "text": "x"}], 1)
    for recipe, message in (
        ({"text": "body"}, "no column 'body'"),
        ({"count": "hosts"}, "no column 'host'"),
        ({"survivor": ("-score",)}, "no column 'score'"),
    ):
        with pytest.raises(UserError, match=message):
            dedup_spans(paths, SpanRecipe(**recipe), str(tmp_path / message.replace("'", "")))
    with pytest.raises(UserError, match="of use to unit token only"):
        dedup_spans(paths, SpanRecipe(), str(tmp_path / "out"), tokenizer="tokenizer.json")


def test_manuals_in_many_languages_lose_their_boilerplate(shared_data, tmp_path):
    """Real pages: repeated lines and substrings leave, one copy of each line stays."""
    from pipelines.curate import CurateRecipe, curate

    curated = curate([str(shared_data / "crawl/docs-crawl/docs-crawl-libreoffice.warc.gz")], CurateRecipe(), str(tmp_path / "curated"))
    lines = dedup_spans([curated], SpanRecipe(min_characters=1), str(tmp_path / "lines"))
    keys = lambda frame: Counter(key for text in frame["text"] for key, _, _ in pieces_reference(text, "line", 1, 3, Normalisation()))
    before, after = keys(curated.scan(["text"]).collect()), keys(pl.concat([lines.scan(["text"]).collect(), lines.scan_rejected(["text"]).collect()]))
    assert lines.counters["removed_bytes"] > 0 and set(before) == set(after)
