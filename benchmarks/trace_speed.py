"""How long lineage takes on many documents: a batch's token back to its record, and a page forward to the steps that read it.

Makes a dataset of `--documents` web-like rows and its shards once under `--work`, then times the two questions, cold (a fresh
process each) as a person asks them. Beside them: the time in which the same process imports what it needs and does nothing.

    python benchmarks/trace_speed.py --documents 1000000
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.dataset import Dataset
from pipelines.mixture import Mixture, Source
from pipelines.recipe import Recipe
from pipelines.shards import tokenize
from pipelines.shardset import ShardSet
from pipelines.stage import PartOutput, Stage, run_stage
from pipelines.tokenizer import train_tokenizer

PART = 100_000  # documents
WORDS = "the mill grinds seven sacks of grain while water turns its wheel and birds sing on the roof of the house".split()


class Made(Recipe):
    documents: int


def _plan(inputs: list[str], config: Made) -> list[dict[str, Any]]:
    return [{"start": start, "stop": min(start + PART, config.documents)} for start in range(0, config.documents, PART)]


def _run(payload: dict[str, Any], config: Made, output: PartOutput) -> None:
    numbers = range(payload["start"], payload["stop"])
    output.read(len(numbers))
    texts = [" ".join(WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(60)) for i in numbers]
    urls = [f"https://mill.example/{i}" for i in numbers]
    output.write(pa.table({"id": [f"{i * 0x9E3779B97F4A7C15 % 2**128:032x}" for i in numbers], "text": texts, "url": urls, "offset": list(numbers)}))


def made(work: Path, documents: int) -> tuple[Dataset, ShardSet]:
    """The dataset and its shards, made or found."""
    rows = run_stage(Stage(name="made", version=1, plan=_plan, run=_run), [], Made(documents=documents), str(work / "documents"))
    tokenizer = train_tokenizer([rows.uri], 512, work / "tokenizer", max_bytes=1 << 20)
    return rows, tokenize(Mixture(sources=(Source(name="made", dataset=rows.uri, weight=1),)), tokenizer, str(work / "shards"))


def seconds(code: str) -> float:
    """Median of five fresh processes, as a person's command is one."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return sorted(times)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=Path("runs/trace-speed"))
    arguments = parser.parse_args()
    _, shards = made(arguments.work, arguments.documents)
    idle = seconds("import pipelines.lineage")
    back = seconds(f"from pipelines.lineage import trace; print(trace({shards.uri!r}, 5, 5))")
    last = arguments.documents - 1
    forward = seconds(
        f"from pipelines.lineage import ids_of, readings; print(list(readings({shards.uri!r}, ids_of({shards.uri!r}, url='https://mill.example/{last}'))))"
    )
    print(f"| {arguments.documents:,} documents, {sum(shards.tokens.values()):,} tokens | seconds | of them imports |\n|---|---|---|")
    print(f"| trace: token -> record | {back:.2f} | {idle:.2f} |")
    print(f"| trace --url: page -> every step that reads it | {forward:.2f} | {idle:.2f} |")


if __name__ == "__main__":
    main()
