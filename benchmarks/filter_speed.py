"""Gopher repetition, Gopher quality, C4 and FineWeb: documents a second on one core, ours and datatrove's, on the same documents in the same run.

Ours measures every signal of the four families and applies all their rules; datatrove runs its four filters one after the other, first each on every
document, then as FineWeb runs them: a document that one drops is not shown to the next. Both sides alternate; the best pass counts (CPU time).

    .venv-peers/bin/python benchmarks/filter_speed.py --documents 200
"""

import argparse
import time
from pathlib import Path

from filter_documents import DATA, datatrove_filters, documents, judge

FOUR = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
IN_FINEWEB = ("gopher_repetition", "gopher_quality", "c4_fineweb", "fineweb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the real data sets")
    parser.add_argument("--documents", type=int, default=200, help="about so many documents, evenly spread over the sets")
    parser.add_argument("--smallest", type=int, default=0, help="leave out documents of fewer characters")
    parser.add_argument("--passes", type=int, default=3)
    arguments = parser.parse_args()
    texts = [text for text in documents(arguments.data, arguments.documents) if len(text) >= arguments.smallest]
    steps = datatrove_filters()

    from filters.families import FAMILIES
    from filters.rules import decide
    from filters.signals import CORE, SOURCES, measure

    def ours(sources=(CORE,)) -> None:
        decide(measure(texts, ["en"] * len(texts), sources=sources), ["en"] * len(texts), [FAMILIES[name] for name in FOUR])

    def theirs() -> None:
        for text in texts:
            for name in FOUR:
                judge(steps[name], text)

    def theirs_in_fineweb() -> None:
        for text in texts:
            for name in IN_FINEWEB:
                if not judge(steps[name], text)[0]:
                    break

    start = time.perf_counter()
    ours()  # compiles, or loads what was compiled
    first = time.perf_counter() - start
    judge(steps["gopher_quality"], texts[0])  # loads spaCy
    runs = {
        "datatrove, each filter on every document": theirs,
        "datatrove, in FineWeb's order": theirs_in_fineweb,
        "ours, the four families": ours,
        "ours, every signal we have": lambda: ours(SOURCES),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(arguments.passes):
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    characters, slow = sum(map(len, texts)), best["datatrove, each filter on every document"]
    print(f"{len(texts)} documents of {characters / len(texts):,.0f} characters on average; one core, best of {arguments.passes} passes; ", end="")
    print(f"our first batch, compilation included: {first:.1f} s\n")
    print("| | documents/s | million characters/s | ratio |\n|---|---:|---:|---:|")
    for name, seconds in best.items():
        print(f"| {name} | {len(texts) / seconds:,.1f} | {characters / seconds / 1e6:.2f} | {slow / seconds:.1f} |")


if __name__ == "__main__":
    main()
