"""Language: our reading of lid.176.ftz against fastText's own, to the last bit."""

import gzip
import itertools
import json
import random

import fasttext
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.language import LONGEST, detect, model_path
from filters.lid import Classifier

SCRIPTS = ["abcdefghijklmnopqrstuvwxyz", "àâçéèêëîïôùûüÿñæœß", "абвгдежзийклмнопрстуфхцчшщыьэюя", "αβγδεζηθικλμνξοπρστυφχψω", "的一是不了人我在有他这中大来上国", "あいうえおかきくけこ", "ابتثجحخدذرزسش", "กขคงจฉชซ", "😀𝔸𠀀", "0123456789.,;:!?-'()"]
WORDS = ["the", "de", "and", "la", "of", "не", "в", "der", "und", "__label__en", "__label__", "</s>", "<", ">", "\0", "x\0y"]


@pytest.fixture(scope="module")
def library():
    return fasttext.load_model(str(model_path()))


def by_library(library, text):
    sample = " ".join(text[:LONGEST].split())
    if not any(map(str.isalpha, sample)):
        return "und", np.float32(0)
    ((score, label),) = library.f.predict(sample + "\n", 1, 0.0, "strict")
    return label.removeprefix("__label__"), np.float32(min(score, 1.0))


def agree(library, texts):
    codes, scores = detect(texts)
    assert list(zip(codes, scores.tolist(), strict=True)) == [(code, float(score)) for code, score in (by_library(library, text) for text in texts)]


def made_up(draw):
    words = []
    for _ in range(draw.choice([0, 1, 3, 30, 300, 6000])):
        letters = draw.choice(SCRIPTS[:1] * 4 + SCRIPTS)
        words.append(draw.choice(WORDS) if draw.random() < 0.2 else "".join(draw.choices(letters, k=draw.choice([1, 2, 5, 9, 40]))))
    return draw.choice([" ", "\n", "\u3000", " \t\x0b\x1c"]).join(words)


def test_random_texts_have_fasttexts_labels_and_scores_to_the_bit(library):
    draw = random.Random()
    agree(library, [made_up(draw) for _ in range(150)])


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=4))
def test_any_text_has_fasttexts_label_and_score(library, texts):
    agree(library, texts)


def test_real_pages_in_many_languages(library, shared_data):
    with gzip.open(shared_data / "langid" / "udhr.jsonl.gz", "rt") as file:
        texts = ["\n".join(json.loads(line)["paras"]) for line in itertools.islice(file, 150)]
    agree(library, texts)


def test_what_is_no_text():
    assert detect([]) == ([], pytest.approx(np.zeros(0)))
    codes, scores = detect(["", None, "12 + 34 = 46", "\ud800 a lone surrogate is no reason to stop"])
    assert codes[:3] == ["und"] * 3 and scores[:3].tolist() == [0, 0, 0] and codes[3] == "en"


def test_another_model_is_refused(tmp_path):
    (tmp_path / "x.ftz").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="no fastText classifier"):
        Classifier.read(tmp_path / "x.ftz")
