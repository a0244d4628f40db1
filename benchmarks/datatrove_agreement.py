"""Do our rules keep what datatrove's own filters keep? Every filter on every document, both sides as for English, their default arguments.

Prints how often the decisions agree, which rules disagree, and each disagreement with both sides' values: theirs is the same formula
(`filters.reference`) on the words that datatrove's splitter (spaCy) gave.

    .venv-peers/bin/python benchmarks/datatrove_agreement.py
"""

import argparse
from collections import Counter
from pathlib import Path

from filter_documents import DATA, datatrove_filters, documents, judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the real data sets")
    parser.add_argument("--documents", type=int, default=0, help="about so many documents, evenly spread over the sets; 0 for all")
    parser.add_argument("--examples", type=int, default=20, help="disagreements shown a filter")
    arguments = parser.parse_args()
    texts = documents(arguments.data, arguments.documents)

    from filters.families import FAMILIES
    from filters.language import detect
    from filters.rules import decide
    from filters.signals import CORE, measure

    signals, english = measure(texts, ["en"] * len(texts), sources=(CORE,)), [code == "en" for code in detect(texts)[0]]
    print(f"{len(texts)} documents, {sum(english)} of them in English, {sum(map(len, texts)) / 1e6:.1f} million characters\n")
    print("| filter | agree | agree, English | datatrove keeps | we keep | only we keep | only datatrove keeps |\n|---|---:|---:|---:|---:|---:|---:|")
    shown = []
    for name, step in datatrove_filters().items():
        keep, reasons, details = decide(signals, ["en"] * len(texts), [FAMILIES[name]])
        verdicts = [judge(step, text) for text in texts]
        apart = [row for row, (kept, _) in enumerate(verdicts) if kept != keep[row]]
        ours, theirs = sum(bool(keep[row]) for row in apart), sum(verdicts[row][0] for row in apart)
        foreign = sum(english[row] for row in apart)
        shares = [1 - len(apart) / len(texts), 1 - foreign / max(sum(english), 1), sum(kept for kept, _ in verdicts) / len(texts), keep.mean()]
        print(f"| {name} | " + " | ".join(f"{share:.2%}" for share in shares) + f" | {ours} | {theirs} |", flush=True)
        shown += [(name, row, reasons[row], details[row], verdicts[row][1]) for row in apart]
    print("\nRules that disagree:\n\n| filter | ours says | datatrove says | documents |\n|---|---|---|---:|")
    for (name, ours, theirs), count in Counter((name, reason, word) for name, _, reason, _, word in shown).most_common():
        print(f"| {name} | {ours or 'kept'} | {theirs or 'kept'} | {count} |")
    print("\nDisagreements:\n")
    for name in datatrove_filters():
        for _, row, reason, detail, word in [entry for entry in shown if entry[0] == name][: arguments.examples]:
            print(f"- {name}: we say {f'{reason} ({detail})' if reason else 'kept'}, datatrove {word or 'kept'}{_difference(texts[row])}: {texts[row][:60]!r}")


def _difference(text: str) -> str:
    """The signals that differ between our words and theirs, as "name ours/theirs"."""
    from datatrove.utils.text import split_into_words

    from filters.reference import fineweb, quality, repetition
    from filters.words import split_words

    sides = [quality(text, words, "en") | repetition(text, words) | fineweb(text, words) for words in (split_words(text, "en"), split_into_words(text, "en"))]
    return "; " + ", ".join(f"{name} {value:.6g}/{sides[1][name]:.6g}" for name, value in sides[0].items() if value != sides[1][name])


if __name__ == "__main__":
    main()
