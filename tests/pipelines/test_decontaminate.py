"""Leaks are found however they are dressed; ordinary text is left alone; the evidence is shown."""

import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kernels.ngrams import Normalisation, ngrams_reference, words_reference
from pipelines.benchmark_items import BenchmarkFormat, benchmark_files, read_items
from pipelines.cluster import Cluster
from pipelines.decontaminate import DecontaminateRecipe, decontaminate
from pipelines.errors import UserError
from pipelines.recipe import load_recipe

LOOSE = Normalisation(fold_digits=False, loose=True)


class Backwards(Cluster):
    """Parts in reverse order, each shipped as a worker would get it: what differs between worker counts, without starting any."""

    def map(self, function, items):
        for index in reversed(range(len(items))):
            shipped, item = pickle.loads(pickle.dumps((function, items[index])))
            yield index, shipped(item)


def write(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_jsonl(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def sentences(draw, count, words=20):
    vocabulary = ["".join(draw.choice(list("abcdefghijklmnopqrst"), 6)) for _ in range(3000)]
    return [" ".join(draw.choice(vocabulary, words)) for _ in range(count)]


DISGUISES = {
    "verbatim": lambda text: text,
    "upper": str.upper,
    "titled": str.title,
    "split over lines": lambda text: text.replace(" ", "\n"),
    "re-punctuated": lambda text: ", ".join(text.split()) + "!",
    "accented": lambda text: text.replace("a", "á"),
    "fullwidth": lambda text: text.translate({code: code + 0xFEE0 for code in range(0x61, 0x7B)}),
    "soft hyphens": lambda text: "".join(character + "\u00ad\u200b" for character in text),
    "quoted": lambda text: " ".join(f"“{word}”" for word in text.split()),
}


@pytest.mark.parametrize("preset", ["ngram13", "ngram8", "letters50", "item"])
def test_planted_leaks_are_found_and_clean_documents_are_not(preset, tmp_path):
    draw = np.random.default_rng(1)
    items = sentences(draw, 60)
    filler = sentences(draw, 400, 120)
    rows = [{"id": f"clean-{n}", "text": text} for n, text in enumerate(filler)]
    for n, item in enumerate(items):
        dressed = list(DISGUISES.values())[n % len(DISGUISES)](item)
        rows.append({"id": f"leak-{n}", "text": f"{filler[n]}. {dressed}\n{filler[-n - 1]}"})
    against = write_jsonl(tmp_path / "bench.jsonl.gz", [{"question": item} for item in items])
    recipe = load_recipe(DecontaminateRecipe, {"preset": preset})
    result = decontaminate([write(tmp_path / "in.parquet", rows)], [against], recipe, str(tmp_path / "out"))
    rejected = result.scan_rejected().collect().to_dicts()
    assert {row["id"] for row in rejected} == {f"leak-{n}" for n in range(60)}
    for row in rejected:
        detail = json.loads(row["detail"])
        n = int(row["id"].removeprefix("leak-"))
        assert detail["item"].endswith(f"bench#{n}:question") and detail["coverage"] == 1 and detail["item_text"] == items[n]
        span = row["text"].encode()[detail["begin"] : detail["end"]].decode()
        assert words_reference(span, LOOSE) == items[n].split() and span.startswith(detail["span"].rstrip("…")) and row["reason"] == "contaminated.ngram"


def test_phrases_shared_by_many_items_or_by_ordinary_text_are_ignored(tmp_path):
    draw = np.random.default_rng(2)
    template = "choose the one answer that best completes the sentence given below and explain your choice"
    phrase = "the quick brown fox jumps over the lazy dog and then it runs back home again"
    tails = sentences(draw, 21, 14)
    items = [{"question": f"{template} {tail}"} for tail in tails[:-1]] + [{"question": f"{phrase} {tails[-1]}"}]
    rows = [{"id": "template", "text": template}, {"id": "phrase", "text": phrase}, {"id": "leak", "text": f"see: {tails[0]}"}]
    source, against = write(tmp_path / "in.parquet", rows), write_jsonl(tmp_path / "b.jsonl.gz", items)
    plain = decontaminate([source], [against], DecontaminateRecipe(), str(tmp_path / "plain"))
    assert set(plain.scan_rejected().collect()["id"]) == {"phrase", "leak"}
    ordinary = write(tmp_path / "ordinary.parquet", [{"text": f"{n} {phrase}"} for n in range(3)])
    known = decontaminate([source], [against], DecontaminateRecipe(reference=(ordinary,)), str(tmp_path / "known"))
    assert set(known.scan_rejected().collect()["id"]) == {"leak"}
    rare = decontaminate([source], [against], DecontaminateRecipe(reference=(ordinary,), common_documents=4), str(tmp_path / "rare"))
    assert set(rare.scan_rejected().collect()["id"]) == {"phrase", "leak"}


def test_coverage_needs_most_of_an_item(tmp_path):
    words = sentences(np.random.default_rng(3), 1, 27)[0].split()  # 20 8-grams
    rows = [{"id": f"{share}", "text": " ".join(words[: 7 + share])} for share in (1, 13, 14, 20)]
    against = write_jsonl(tmp_path / "b.jsonl.gz", [{"question": " ".join(words)}])
    recipe = load_recipe(DecontaminateRecipe, {"preset": "ngram8"})
    result = decontaminate([write(tmp_path / "in.parquet", rows)], [against], recipe, str(tmp_path / "out"))
    assert {row["id"]: json.loads(row["detail"])["coverage"] for row in result.scan_rejected().collect().to_dicts()} == {"14": 0.7, "20": 1.0}


def test_flags_equal_brute_force(tmp_path):
    """Every document against every item, n-grams as Python sets: the same documents leave, with the same coverage."""
    draw = np.random.default_rng(5)
    words = [f"w{number}" for number in range(12)]  # few words: many chance matches
    items = [" ".join(draw.choice(words, int(draw.integers(5, 14)))) for _ in range(40)]
    texts = [" ".join(draw.choice(words, 60)) for _ in range(30)]
    against = write_jsonl(tmp_path / "b.jsonl.gz", [{"question": item} for item in items])
    source = write(tmp_path / "in.parquet", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    for threshold in (0.0, 0.4):
        recipe = DecontaminateRecipe(n=4, min_units=5, coverage=threshold, common_items=10**6, common_documents=10**6, ordinary_words=0)
        result = decontaminate([source], [against], recipe, str(tmp_path / f"out{threshold}"))
        found = {row["id"]: json.loads(row["detail"])["coverage"] for row in result.scan_rejected().collect().to_dicts()}
        grams = {item: set(ngrams_reference(item, 4, LOOSE)) for item in items}
        best = {str(n): max(len(one & set(ngrams_reference(text, 4, LOOSE))) / len(one) for one in grams.values()) for n, text in enumerate(texts)}
        expected = {name: round(share, 4) for name, share in best.items() if share > 0 and share >= threshold}
        assert found == expected and len(found) > 0


def test_strided_letters_find_every_shared_run(tmp_path):
    """The promise of `stride`: any shared run of n + stride - 1 letters, wherever it begins."""
    draw = np.random.default_rng(6)
    item = "".join(draw.choice(list("abcdefghij"), 200))
    runs = {f"{at}": item[at : at + 50] for at in range(0, 151, 7)}
    rows = [{"id": name, "text": f"{'xyz' * 20}. {' '.join(run)} {'zyx' * 20}"} for name, run in runs.items()]
    rows += [{"id": "short", "text": f"zz {item[103:143]} zz"}]  # 40 letters: less than n
    against = write_jsonl(tmp_path / "b.jsonl.gz", [{"question": item}])
    recipe = load_recipe(DecontaminateRecipe, {"preset": "letters50", "coverage": 0, "common_documents": 1000})
    result = decontaminate([write(tmp_path / "in.parquet", rows)], [against], recipe, str(tmp_path / "out"))
    assert set(result.scan_rejected().collect()["id"]) == set(runs)


def test_a_phrase_of_many_documents_is_ignored_but_an_item_of_many_is_a_leak(tmp_path):
    draw = np.random.default_rng(7)
    phrase, *items = sentences(draw, 4, 15)
    tails = sentences(draw, 3, 40)
    items = [f"{phrase} {tail}" for tail in tails]
    rows = [{"id": f"quote-{n}", "text": f"as they say, {phrase}: {n}"} for n in range(5)] + [{"id": f"leak-{n}", "text": f"see\n{items[0]}"} for n in range(5)]
    rows += [{"id": f"half-{n}", "text": " ".join(tails[1].split()[:25])} for n in range(5)]
    against = write_jsonl(tmp_path / "b.jsonl.gz", [{"question": item} for item in items])
    result = decontaminate([write(tmp_path / "in.parquet", rows)], [against], DecontaminateRecipe(), str(tmp_path / "out"))
    assert set(result.scan_rejected().collect()["id"]) == {f"{kind}-{n}" for kind in ("leak", "half") for n in range(5)}


def test_a_short_item_must_begin_a_sentence_and_hold_an_uncommon_word(tmp_path):
    names = sentences(np.random.default_rng(8), 60, 12)
    questions = [f"Which of these is true of the {name}?" for name in names] + ["Which of these is true of the following?"]
    short = "The harpsichord is tuned before every single concert"
    rows = [{"id": "inside", "text": f"He says the {short[4:]} here."}, {"id": "alone", "text": f"Yes. {short}."}]
    rows += [{"id": "stub", "text": "Quiz: Which of these is true of the following?"}]
    against = write_jsonl(
        tmp_path / "b.jsonl.gz", [{"question": item} for item in [*questions, short, "Pick the one of the following which is true: following"]]
    )
    recipe = DecontaminateRecipe(ordinary_words=0.5)
    result = decontaminate([write(tmp_path / "in.parquet", rows)], [against], recipe, str(tmp_path / "out"))
    assert set(result.scan_rejected().collect()["id"]) == {"alone", "stub"}  # "following" is in two items only: not yet ordinary
    common = [{"question": f"following {question}"} for question in questions]
    against = write_jsonl(tmp_path / "c.jsonl.gz", [*common, {"question": questions[-1]}, {"question": short}])
    result = decontaminate([str(tmp_path / "in.parquet")], [against], recipe, str(tmp_path / "out2"))
    assert set(result.scan_rejected().collect()["id"]) == {"alone"}


def test_folders_archives_and_formats_told_by_their_fields(tmp_path):
    """Benchmarks in the layouts their authors publish, found in a folder, with no path in the recipe."""
    recipe = load_recipe(DecontaminateRecipe, "decontaminate")
    layouts = {
        "gsm8k.jsonl": {"question": "q", "answer": "a"},
        "arc.jsonl": {"question": {"stem": "q", "choices": [{"text": "x", "label": "A"}]}},
        "HumanEval.jsonl": {"prompt": "q", "canonical_solution": "c", "test": "t"},
        "hellaswag_val.jsonl": {"ctx": "q", "endings": ["e", "f"]},
        "piqa.jsonl": {"goal": "q", "sol1": "s", "sol2": "t"},
        "requests.jsonl": {"doc": {"query": "q", "choices": ["x"], "id": 3}, "label": 0},
        "ifeval.jsonl": {"key": 1, "prompt": "q", "kwargs": []},
    }
    for name, row in layouts.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    with tarfile.open(tmp_path / "mmlu.tar.xz", "w:xz") as archive:
        for subject in ("law", "virology"):
            data = f'"q of {subject}, please",b,c,d,e,A\n'.encode()
            entry = tarfile.TarInfo(f"data/test/{subject}_test.csv")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    (tmp_path / "README.txt").write_text("no benchmark")
    files = benchmark_files(str(tmp_path))
    assert len(files) == len(layouts) + 1 and benchmark_files(f"{tmp_path}/*.xz") == [str(tmp_path / "mmlu.tar.xz")]
    texts = {path.rpartition("/")[2]: [item.text for item in read_items(path, recipe.formats)] for path in files}
    assert texts["gsm8k.jsonl"] == ["q", "a"] and texts["HumanEval.jsonl"] == ["q", "c"] and texts["ifeval.jsonl"] == ["q"]
    assert texts["arc.jsonl"] == ["q", "q\nx\nA"] and texts["hellaswag_val.jsonl"] == ["q", "q\ne\nf"]
    assert texts["piqa.jsonl"] == ["q", "q\ns", "q\nt"] and texts["requests.jsonl"] == ["q", "q\nx"]
    assert texts["mmlu.tar.xz"] == ["q of law, please", "q of law, please\nb\nc\nd\ne", "q of virology, please", "q of virology, please\nb\nc\nd\ne"]
    with pytest.raises(UserError, match="no benchmark files"):
        benchmark_files(str(tmp_path / "*.txt"))


def test_generated_problems_are_told_apart_by_their_operators(tmp_path):
    """Problems of one template share every phrase; only the same problem is a leak. Chat messages are read too."""
    held_out = [{"question": f"What is {a} {op} {b}?"} for a, op, b in [(12, "+", 34), (7, "*", 8)]]
    asked = ["What is 12 + 34?", "What is 12 - 34?", "What is 34 + 12?", "what is 7*8 ?", "What is 17 * 8?", "Say, what is 12 + 34? 46", "What is 12 + 34 + 5?"]
    reply = {"role": "assistant", "content": "<think>\nhm\n</think>"}
    rows = [{"id": str(n), "messages": [{"role": "user", "content": text}, reply]} for n, text in enumerate(asked)]
    recipe = load_recipe(DecontaminateRecipe, "decontaminate-generated")
    against = write(tmp_path / "held.parquet", held_out)
    result = decontaminate([write(tmp_path / "in.parquet", rows)], [against], recipe, str(tmp_path / "out"))
    assert set(result.scan_rejected().collect()["id"]) == {"0", "3", "5"}


def test_workers_change_nothing_and_columns_stay(tmp_path):
    draw = np.random.default_rng(4)
    texts = sentences(draw, 50, 40)
    against = write_jsonl(tmp_path / "b.jsonl.gz", [{"question": " ".join(text.split()[:15])} for text in texts[:7]])
    rows = [{"id": f"{n}", "text": text, "signals": {"x": n}} for n, text in enumerate(texts)]
    parts = [write(tmp_path / f"{part}.parquet", rows[part::2]) for part in range(2)]
    serial = decontaminate(parts, [against], DecontaminateRecipe(), str(tmp_path / "serial"))
    spread = decontaminate(parts, [against], DecontaminateRecipe(), str(tmp_path / "spread"), Backwards())
    assert serial.digest == spread.digest and serial.rejected_rows == 7
    assert serial.scan().collect().columns == ["id", "text", "signals"]


def test_items_come_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"What, then, is it?",x\n')
    (tmp_path / "b.csv").write_text('"No header, here",x\n')
    write(tmp_path / "c.parquet", [{"prompt": "p", "n": 1}])
    write_jsonl(tmp_path / "d.jsonl.gz", [{"doc": {"query": "q", "choices": ["x", "y"]}}])
    choices = BenchmarkFormat(match="*d.jsonl.gz", fields=("doc.query", "doc.choices"))
    headless = (BenchmarkFormat(match="*b.csv", fields=("0",), header=False), choices)
    texts = {path.name: [item.text for item in read_items(str(path), headless)] for path in tmp_path.iterdir()}
    assert texts == {"a.csv": ["What, then, is it?"], "b.csv": ["No header, here"], "c.parquet": ["p"], "d.jsonl.gz": ["q", "x\ny"]}


def test_mistakes_are_told_in_one_line(tmp_path):
    source = write(tmp_path / "in.parquet", [{"id": "1", "text": "x"}])
    with pytest.raises(UserError, match="against what"):
        decontaminate([source], [], DecontaminateRecipe(), str(tmp_path / "0"))
    with pytest.raises(UserError, match="no such file"):
        decontaminate([source], [str(tmp_path / "absent.jsonl")], DecontaminateRecipe(), str(tmp_path / "1"))
    with pytest.raises(UserError, match="none of the fields"):
        decontaminate([source], [write_jsonl(tmp_path / "b.jsonl.gz", [{"body": "x"}])], DecontaminateRecipe(), str(tmp_path / "2"))
    with pytest.raises(UserError, match="can be looked for"):
        decontaminate([source], [write_jsonl(tmp_path / "c.jsonl.gz", [{"question": "too short"}])], DecontaminateRecipe(), str(tmp_path / "3"))
    with pytest.raises(UserError, match="no column 'body'"):
        against = write_jsonl(tmp_path / "d.jsonl.gz", [{"question": "long enough to be looked for by its words"}])
        decontaminate([source], [against], DecontaminateRecipe(text="body"), str(tmp_path / "4"))


def test_real_benchmarks_against_real_clean_text(shared_data, tmp_path):
    """GSM8K, HumanEval, MBPP and ARC planted verbatim into textbook pages: >= 99 % found; of the pages themselves <= 0.1 % flagged."""
    with gzip.open(shared_data / "text/openstax-textbooks.jsonl.gz", "rt", encoding="utf-8") as file:
        pages = [json.loads(line)["text"] for line, _ in zip(file, range(1000), strict=False)]
    root = shared_data / "reasoning"
    files = ("gsm8k/test.jsonl", "HumanEval.jsonl.gz", "mbpp.jsonl.gz", "olmo-in-loop-evals/arc_challenge__rc_0shot.jsonl.gz")
    against = [str(root / name) for name in files]
    recipe = load_recipe(DecontaminateRecipe, "decontaminate")
    items = [item for path in against for item in read_items(path, recipe.formats) if len(item.text.split()) >= 16]
    rows = [{"id": f"clean-{n}", "text": page} for n, page in enumerate(pages)]
    rows += [{"id": f"leak-{n}", "text": f"{pages[n % 1000][:1500]}\n\n{item.text}\n"} for n, item in enumerate(items[::7])]
    result = decontaminate([write(tmp_path / "in.parquet", rows)], against, recipe, str(tmp_path / "out"))
    flagged = result.scan_rejected(["id", "detail"]).collect()
    found = flagged["id"].str.starts_with("leak").sum()
    assert found >= 0.99 * len(items[::7]), (found, len(items[::7]))
    assert flagged.height - found <= 1, flagged.filter(flagged["id"].str.starts_with("clean")).to_dicts()
