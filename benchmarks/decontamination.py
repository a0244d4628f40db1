"""Decontamination on real text: planted leaks found, clean documents flagged, and speed beside datatrove's n-gram filter.

    python benchmarks/decontamination.py [--data FOLDER] [--presets ngram13 ngram8 letters50] [--leaks 300] [--peer-documents 60]

Benchmarks: everything in FOLDER/reasoning. Clean text: textbooks, novels, encyclopaedia pages and human-extracted web pages; news articles are
a second clean set that no rule was tuned on. A leak is one item, dressed in one of the ways of DRESSES, put between two sentences
of a clean page; it counts as found when the span shown overlaps it. Every clean document flagged is printed, to be judged by reading.

`false` counts those that are no contamination: the document shares a well-known sentence with an item, not a passage of it. TRUE lists the others,
judged by reading. Speed is CPU time of one core from Parquet to matches, ours and datatrove's alternating on the same documents.
"""

import argparse
import gzip
import json
import os
import re
import resource
import statistics
import tempfile
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.benchmark_items import benchmark_files, read_items
from pipelines.dataset import Dataset
from pipelines.decontaminate import DecontaminateRecipe, decontaminate
from pipelines.decontaminate.index import load_index
from pipelines.decontaminate.match import write_matches
from pipelines.recipe import load_recipe
from pipelines.stage import Stage, run_stage

# Clean pages that do hold a benchmark's text: source passages of MMLU history items (a poem, a court opinion, a speech), LAMBADA's own novel.
TRUE = {"openstax-34", "openstax-48", "openstax-149", "novel-15-0", "novel-15-60000", "novel-15-110000"}

_FULLWIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_LIGATURES = {"ffi": "\ufb03", "ffl": "\ufb04", "ff": "\ufb00", "fi": "\ufb01", "fl": "\ufb02"}
DRESSES = {
    "verbatim": lambda text: text,
    "upper case": str.upper,
    "title case": str.title,
    "punctuation dropped": lambda text: re.sub(r"[.,;:!?\"()]+(?=\s|$)|['’]", "", text),
    "every mark deleted": lambda text: re.sub(r"[^\w\s]", "", text),  # joins words: f(x) is fx
    "punctuation added": lambda text: re.sub(r"(\w) (\w)", r"\1, \2", text),
    "split over lines": lambda text: text.replace(" ", "\n"),
    "white space": lambda text: re.sub(r"\s", "\u00a0\u2003 ", text),
    "invisible characters": lambda text: re.sub(r"(\w\w)(\w\w)", "\\1\u00ad\u200b\\2", text),
    "fullwidth": lambda text: text.translate(_FULLWIDTH),
    "ligatures, decomposed": lambda text: unicodedata.normalize("NFD", re.sub("ffi|ffl|ff|fi|fl", lambda found: _LIGATURES[found[0]], text)),
    "markdown": lambda text: re.sub(r"(\S+) (\S+)", r"**\1** _\2_", text),
    "hyphenated at line ends": lambda text: re.sub(r"(\w{12}\w* \w* ?\w{3})(\w{3})", "\\1-\n\\2", text),
}


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def clean_documents(data: Path) -> Iterator[tuple[str, str]]:
    """(id, text): novels in pages of 10,000 characters, all else as it is."""
    for number, row in enumerate(lines(data / "text/openstax-textbooks.jsonl.gz")):
        yield f"openstax-{number}", row["text"]
    for number, row in enumerate(lines(data / "text/english-novels.jsonl.gz")):
        yield from ((f"novel-{number}-{at}", row["text"][at : at + 10_000]) for at in range(0, len(row["text"]), 10_000))
    for number, row in enumerate(lines(data / "text/world-factbook.jsonl.gz")):
        yield f"factbook-{number}", row["text"]
    for name, field in (("scrapinghub-aeb", "articleBody"), ("wcxb-dev", "main_content")):
        for number, row in enumerate(lines(data / f"extraction/{name}.gt.jsonl.gz")):
            yield f"{name}-{number}", row[field] or ""
    for split in ("valid", "test"):
        with gzip.open(data / f"text/wikitext-2-{split}.txt.gz", "rt", encoding="utf-8") as file:
            yield from ((f"wikitext-{split}-{number}", page) for number, page in enumerate(re.split(r"\n (?== [^=])", file.read())))
    for number, row in enumerate(lines(data / "text/dclm-human-quality_majority_data.jsonl.gz")):
        yield f"dclm-{number}", row["text"]


def news(data: Path) -> Iterator[tuple[str, str]]:
    """The untouched clean set: one article a line, its id first."""
    path = next(path for path in sorted((data / "dedup").iterdir()) if "articles" in path.name and "train" in path.name)
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") if path.suffix == ".gz" else open(path, encoding="utf-8", errors="replace") as file:
        yield from ((f"news-{number}", line.partition(" ")[2]) for number, line in enumerate(file))


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    pq.write_table(pa.table({"id": [name for name, _ in rows], "text": [text for _, text in rows]}), path)
    return str(path)


def plant(items: list[str], hosts: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], dict[str, tuple[int, int]]]:
    """Leaks, one item each, the dresses in turn: rows, and the bytes of each leak."""
    rows, places = [], {}
    for number, item in enumerate(items):
        host = hosts[number % len(hosts)][1][:3000]
        ends = [found.end() for found in re.finditer(r"[.!?]\s", host)] or [len(host)]
        at = ends[len(ends) // 2]
        dress = list(DRESSES)[number % len(DRESSES)]
        leak = DRESSES[dress](item)
        name = f"{dress}#{number}"
        rows.append((name, f"{host[:at]}\n{leak}\n{host[at:]}"))
        begin = len(host[:at].encode()) + 1
        places[name] = (begin, begin + len(leak.encode()))
    return rows, places


def flagged(dataset: Dataset) -> list[dict]:
    return [json.loads(row["detail"]) | {"id": row["id"]} for row in dataset.scan_rejected(["id", "detail"]).collect().to_dicts()]


def speed(parts: list[str], index: Dataset, recipe: DecontaminateRecipe, folder: Path, label: str) -> float:
    """CPU seconds from Parquet to matches."""
    payloads = [{"part": part, "number": number, "reference": False, "index": index.files, "digest": index.digest} for number, part in enumerate(parts)]
    stage = Stage(name="matches", version=1, plan=lambda inputs, config: payloads, run=write_matches)
    begin = time.process_time()
    run_stage(stage, [index.uri], recipe, str(folder / f"speed-{label}"))
    return time.process_time() - begin


def datatrove_filter(texts: list[str], n: int):
    """datatrove's filter with the n-grams of `texts`, hashed by its own code; None where it or spaCy is missing."""
    try:
        from datatrove.data import Document
        from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter, ngrams, simplify_text

        step = NGramsDecontFilter("/tmp", NGramsDecontConfig(n_grams=n))
        words = [step.tokenizer.word_tokenize(simplify_text(text, step.config.norm_config)) for text in texts]
    except ImportError as error:
        print(f"\ndatatrove: not measured ({error})")
        return None
    step._index_hashes = {step.hash_func(" ".join(gram)): "item" for one in words for gram in ngrams(one, n)}
    return lambda text: step.filter(Document(text=text, id="")) is not True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("GRISTMILL_DATA") or Path(__file__).resolve().parents[2] / "shared/data"
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--presets", nargs="+", default=["ngram13", "ngram8", "letters50"])
    parser.add_argument("--leaks", type=int, default=300, help="of each kind")
    parser.add_argument("--peer-documents", type=int, default=60)
    arguments = parser.parse_args()
    clean, fresh = list(clean_documents(arguments.data)), list(news(arguments.data))
    against = str(arguments.data / "reasoning")
    size = sum(len(text.encode()) for _, text in clean)
    print(f"{len(clean):,} clean documents ({size / 1e6:.0f} MB), {len(fresh):,} news articles; leaks of each kind: {arguments.leaks}")
    recall: dict[str, dict[str, str]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {"clean": write(folder / "clean.parquet", clean), "news": write(folder / "news.parquet", fresh)}
        for preset in arguments.presets:
            recipe = load_recipe(DecontaminateRecipe, "decontaminate", [f"preset={preset}"])
            begin = time.process_time()
            hits = flagged(decontaminate([sources["clean"]], [against], recipe, str(folder / f"clean-{preset}")))
            seconds = time.process_time() - begin
            index_at = Dataset.open(str(folder / f"clean-{preset}/work/index"))
            index = load_index(tuple(index_at.files), index_at.digest)
            table = sum(array.nbytes for array in (index.bounds, index.items)) + sum(one.grams.nbytes + one.bitmap.nbytes for one in index.by_length)
            items = f"{index_at.counters['items_indexed']:,.0f} items"
            print(f"\n### {preset}: {items}, {index.size:,} n-grams, {table / 1e6:.0f} MB of tables; all in {seconds:.0f} s CPU")
            for hit in hits:
                print(f"- {hit['id']}{' (true)' if hit['id'] in TRUE else ''}: {hit['item']}, {hit['coverage']:.1%} of it: {hit['span'][:120]!r}")
            other = flagged(decontaminate([sources["news"]], [against], recipe, str(folder / f"news-{preset}")))
            for hit in other:
                print(f"- {hit['id']}: {hit['item']}, {hit['coverage']:.1%} of it: {hit['span'][:120]!r}")
            true = sum(hit["id"] in TRUE for hit in hits)
            recall["clean documents flagged"][preset] = f"{len(hits) / len(clean):.3%} ({len(hits)})"
            recall["... of them false"][preset] = f"{(len(hits) - true) / (len(clean) - true):.3%} ({len(hits) - true})"
            recall["news articles flagged"][preset] = f"{len(other) / len(fresh):.3%} ({len(other)})"

            looked_for = {index.ids[item] for item in np.unique(index.items)}
            texts = [item.text for uri in benchmark_files(against) for item in read_items(uri, recipe.formats) if item.id in looked_for]
            chosen = [texts[place] for place in np.random.default_rng(0).permutation(len(texts))[: arguments.leaks * len(DRESSES)]]
            rows, places = plant(chosen, [row for row in clean if row[0].startswith(("novel", "wcxb"))])
            leaks = write(folder / f"leaks-{preset}.parquet", rows)
            found: dict[str, list[bool]] = {dress: [] for dress in DRESSES}
            spans = {hit["id"]: (hit["begin"], hit["end"]) for hit in flagged(decontaminate([leaks], [against], recipe, str(folder / f"leaks-{preset}")))}
            for leak, (begin_byte, end_byte) in places.items():
                span = spans.get(leak)
                found[leak.partition("#")[0]].append(span is not None and span[0] < end_byte and span[1] > begin_byte)
            for dress, flags in found.items():
                recall[dress][preset] = f"{statistics.mean(flags):.4f}"
            times = [speed([sources["clean"]], index_at, recipe, folder, f"{preset}-{turn}") for turn in range(3)]
            recall["documents a second and core"][preset] = f"{len(clean) / statistics.median(times):,.0f} ({size / statistics.median(times) / 1e6:.0f} MB/s)"
            if preset == "ngram13":
                peer(chosen, rows[: arguments.peer_documents], set(spans), index_at, recipe, folder)
        print(f"\n| leaks found | {' | '.join(arguments.presets)} |\n|---|{'---|' * len(arguments.presets)}")
        for row, cells in recall.items():
            print(f"| {row} | {' | '.join(cells[preset] for preset in arguments.presets)} |")
    print(f"\nmost memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def peer(items: list[str], rows: list[tuple[str, str]], flagged_by_us: set[str], index: Dataset, recipe: DecontaminateRecipe, folder: Path) -> None:
    """The same documents through datatrove's filter, alternating."""
    theirs = datatrove_filter(items[: len(rows)], recipe.n)
    if theirs is None:
        return
    source = write(folder / "peer.parquet", rows)
    speed([source], index, recipe, folder, "warm")
    turns = []
    for turn in range(3):
        mine = speed([source], index, recipe, folder, f"peer-{turn}")
        begin = time.process_time()
        verdicts = [theirs(text) for _, text in rows]
        turns.append((mine, time.process_time() - begin))
    mine, other = (statistics.median(times) for times in zip(*turns, strict=True))
    print(
        f"\n{len(rows)} documents with a leak each: ours {len(rows) / mine:,.0f} documents/s/core, datatrove {len(rows) / other:,.0f}; ratio {other / mine:.1f}"
    )
    print(f"of these {len(rows)} datatrove flags {sum(verdicts)}, ours {sum(name in flagged_by_us for name, _ in rows)}")


if __name__ == "__main__":
    main()
