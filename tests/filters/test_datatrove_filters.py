"""datatrove's filters as steps: its verdicts, our reasons."""

import fasttext
import pytest
from datatrove.pipeline.filters.base_filter import BaseFilter

from filters import datatrove_filters
from filters.datatrove_filters import judge


def rows(*texts):
    return [{"id": str(i), "text": text, "url": f"http://site{i}.example/", "language": "en"} for i, text in enumerate(texts)]


def test_drops_carry_a_reason():
    step = datatrove_filters.load("RegexFilter", {"regex_exp": "forbidden"})
    reasons = [verdict.reason for verdict in judge(step, rows("fine", "a forbidden word", "fine too"))]
    assert reasons == ["", "datatrove.RegexFilter", ""]


def test_the_filters_own_word_is_the_detail():
    step = datatrove_filters.load("C4ParagraphFilter", {})
    ((reason, detail, _),) = judge(step, rows("one short paragraph"))
    assert reason == "datatrove.C4ParagraphFilter" and detail.startswith("< 3 paragraphs")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("NoSuchFilter", {}, "no filter NoSuchFilter; known: C4"),
        ("RegexFilter", {"regx": 1}, "RegexFilter: .*regx"),
        ("LambdaFilter", {"filter_function": "len"}, "a recipe cannot hold"),
        ("nowhere.Mine", {}, "no filter nowhere.Mine: No module named"),
        ("collections.Counter", {}, "no filter collections.Counter"),
    ],
)
def test_mistakes_are_named(name, params, message):
    with pytest.raises(ValueError, match=message):
        datatrove_filters.load(name, params)


class Shortens(BaseFilter):
    """A filter of a team's own: keeps the first word, drops texts of one, fails on empty ones."""

    def __init__(self, least=1):
        super().__init__(batch_size=2)
        self.least = least

    def filter(self, doc):
        first, *rest = doc.text.split()
        doc.text = first
        return len(rest) >= self.least or (False, "short")


def test_a_teams_own_filter_by_its_path_edits_and_fails_in_one_line():
    step = datatrove_filters.load(f"{__name__}.Shortens", {"least": 1})
    assert judge(step, rows("one two", "three", "four five")) == [("", "", "one"), ("datatrove.Shortens", "short", "three"), ("", "", "four")]
    with pytest.raises(ValueError, match="Shortens fails on document 0: ValueError: not enough values"):
        judge(step, rows(""))


def test_a_lot_depends_on_seed_and_document_alone():
    def kept(texts, seed):
        return {row["id"] for row, verdict in zip(texts, judge(datatrove_filters.load("SamplerFilter", {"rate": 0.5, "seed": seed}), texts), strict=True) if not verdict.reason}

    many = rows(*["text"] * 200)
    once = kept(many, 1)
    assert 70 < len(once) < 130 and once == kept(many[:50], 1) | kept(many[50:][::-1], 1) and once != kept(many, 2)
    assert kept(many, None) == kept(many, None), "no seed is a seed too"


def test_a_fasttext_file_of_ones_own(tmp_path):
    pytest.importorskip("fasteners")
    (tmp_path / "lines.txt").write_text("".join(f"__label__{'good river stone' if n % 2 else 'bad cookie price'} {n}\n" for n in range(200)))
    fasttext.train_supervised(str(tmp_path / "lines.txt"), verbose=0).save_model(str(tmp_path / "model.bin"))
    step = datatrove_filters.load("FastTextClassifierFilter", {"model_url": str(tmp_path / "model.bin"), "keep_labels": ["good", 0.5]})
    assert [verdict.reason for verdict in judge(step, rows("river stone", "cookie price"))] == ["", "datatrove.FastTextClassifierFilter"]
