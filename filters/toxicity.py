"""Toxicity by a classifier, sentence by sentence, as Dolma measures it (Soldaini et al. 2024, section 5.2; python/dolma/taggers/jigsaw.py).

The classifier is any fastText file (Dolma's Jigsaw models have the labels `__label__toxic` and `__label__nsfw`). Dolma cuts sentences that score
0.4 or more; here they are a share, and the bound on it decides. Pickled models are not read: a pickle is a program.
"""

import re

import numpy as np

from filters.classifier import FastText
from filters.pages import Pages, Source, shares
from filters.rules import at_most, rules

TOXICITY = rules(
    "toxicity",
    ("sentences", "toxic_sentences", at_most(0.1)),  # ours: Dolma publishes no bound on a document, only the sentences' 0.4
)
TOXIC = 0.4  # a sentence's score, Dolma 1.6
TOXICITY_TYPES = shares("toxic_sentences", "toxicity")
_SENTENCE = re.compile(r"[^\n.!?。！？]+[.!?。！？]*")


def toxicity(model: FastText, threshold: float = TOXIC) -> Source:
    """The source of `toxic_sentences` (share of sentences that score at least `threshold`) and `toxicity` (the highest score)."""

    def measure(pages: Pages) -> dict[str, np.ndarray]:
        sentences = [[match for match in _SENTENCE.findall(text) if not match.isspace()] for text in pages.texts]
        scores = np.append(model.scores([sentence for page in sentences for sentence in page]), np.float32(0))
        ends = np.cumsum([len(page) for page in sentences], dtype=np.int64)
        pieces = [scores[end - len(page) : end] for page, end in zip(sentences, ends.tolist(), strict=True)]
        return {
            "toxic_sentences": np.array([float((piece >= threshold).mean()) if len(piece) else 0.0 for piece in pieces]),
            "toxicity": np.array([float(piece.max()) if len(piece) else 0.0 for piece in pieces]),
        }

    return Source(TOXICITY_TYPES, measure)
