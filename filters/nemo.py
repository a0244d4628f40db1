"""NeMo Curator's heuristic rules that are its own (NVIDIA-NeMo/Curator 1.3, config/text/heuristic_filter_english_pipeline.yaml and code_filter_pipeline.yaml).

The rest of its English pipeline is Gopher's at Gopher's values: its 0.7 and 0.8 for lines and paragraphs are the shares that must be no repetition.
`nemo_code` is for program files; its signals (`filters.code`) are measured only where a recipe names it.
"""

from filters.rules import at_least, at_most, between, rules

NEMO = rules(
    "nemo",
    ("non_alphanumeric", at_most(0.25)),
    ("digits", at_most(0.15)),
    ("urls", "url_characters", at_most(0.2)),
    ("whitespace", at_most(0.25)),
    ("parentheses", at_most(0.1)),
    ("boilerplate", "boilerplate_paragraphs", at_most(0.4)),
    ("unpunctuated_lines", at_most(0.85)),
    ("longest_word", at_most(1000)),
)
NEMO_CODE = rules(
    "nemo_code",
    ("comments", "comment_share", between(0.001, 0.85)),
    ("lines", "code_file_lines", between(5, 20_000)),
    ("characters_per_token", at_least(2)),
    ("letters", at_least(0.25)),  # StarCoder's alpha filter (Li et al. 2023)
    ("xml_header", at_most(0)),  # StarCoder: XML under another name
)
