"""Where DCLM and Dolma read Gopher's rules otherwise than datatrove: words are blank-separated, stop words count each time, Dolma takes the median length.

DCLM: mlfoundations/dclm, baselines_configs/dclm_baseline_refinedweb.yaml (AI2's datamap-rs carries the same, and asks for 150 characters).
Dolma 1.6: allenai/dolma, configs/dolma-v1_6/mixing/cc-head.yaml with taggers gopher_v1 and tokenizer_repetitions_v2r2. Its repetitions are of GPT-NeoX
tokens, ours of words: a run of one repeated character inside a word is not seen.
"""

from filters.rules import at_least, at_most, between, rules

DCLM_QUALITY = rules(
    "dclm_quality",
    ("words", "plain_words", between(50, 100_000)),
    ("word_length", "plain_word_length", between(3, 10)),
    ("symbols_per_word", at_most(0.1)),
    ("bullet_lines", at_most(0.9)),
    ("ellipsis_lines", at_most(0.3)),
    ("alphabetic_words", "alphabetic_plain_words", at_least(0.8)),
    ("stop_words", "stop_word_occurrences", at_least(2)),
)
DOLMA_QUALITY = rules(
    "dolma_quality",
    ("words", "plain_words", between(50, 100_000)),
    ("word_length", "median_word_length", between(3, 10)),
    ("symbol_words", at_most(0.1)),
    ("alphabetic_words", "alphabetic_plain_words", at_least(0.8)),
    ("stop_words", "stop_word_occurrences", at_least(2)),
    ("bullet_lines", at_most(0.9)),
    ("ellipsis_lines", at_most(0.3)),
    ("repetitions", at_most(99)),  # 100 or more copies of a run: dropped
)
