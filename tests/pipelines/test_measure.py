"""What a recipe adds to curation: line edits, lists, licences, personal data as spans."""

import json

import pytest

from filters.classifier import GOOD, example, train_fasttext
from filters.signals import SIGNAL_TYPE, measure
from pipelines.curate import curate
from pipelines.curate.judge import KEPT_SCHEMA, judge
from pipelines.curate.measure import BadWords, Measures, Toxicity, UrlLists
from pipelines.curate.recipe import CurateRecipe
from pipelines.errors import UserError
from pipelines.recipe import load_recipe

PROSE = "\n".join(
    [
        "The old bridge over the river was rebuilt last year by the city and is open to traffic again.",
        "Many people from the villages nearby came to the opening, and the feast lasted into the night.",
        "Their mayor thanked all those who, with their work and their gifts, have helped to keep the building.",
        "It was designed in the last century by an engineer whose plans were found in the attic of a school.",
        "Children who had never seen the other bank were allowed to cross first, with flags in their hands.",
    ]
)


def _row(text, **more):
    row = dict.fromkeys(KEPT_SCHEMA.names, "") | {"language_score": 0.0, "offset": 0, "length": 0, "pii": [], "edits": [], "reason": "", "detail": ""}
    return row | {"id": "a" * 32, "text": text, **more}


def test_families_before_an_edit_see_the_page_those_after_it_what_is_left():
    recipe = CurateRecipe(families=("gopher_quality", "c4_fineweb", "fineweb"), measures=Measures(lines="c4_fineweb"))
    kept, rejected = judge([_row(PROSE + "\n\nNavigation\nHome\nPlease enable JavaScript to see it.")], recipe)
    assert rejected.num_rows == 0
    (row,) = kept.to_pylist()
    assert row["text"] == PROSE and {edit["kind"] for edit in row["edits"]} == {"blank", "short_line", "javascript"}
    whole, left = (measure([text], ["en"], [row["language_score"]])[0].as_py() for text in (PROSE + "\n\nNavigation\nHome\nPlease enable JavaScript to see it.", PROSE))
    assert row["signals"]["bullet_lines"] == whole["bullet_lines"] and row["signals"]["words"] == whole["words"]
    assert row["signals"]["short_lines"] == left["short_lines"] != whole["short_lines"]


def test_refinedweb_drops_pages_that_lose_too_much():
    recipe = load_recipe(CurateRecipe, "refinedweb")
    shouting = PROSE + "\nTHIS LINE SHOUTS\nSO DOES ANOTHER\nAND THE LAST OF THEM"
    kept, rejected = judge([_row(PROSE + "\n3 likes\nOne more line of words to read, and that is all."), _row(shouting)], recipe)
    assert [row["text"] for row in kept.to_pylist()] == [PROSE + "\nOne more line of words to read, and that is all."]
    assert rejected["reason"].to_pylist() == ["refinedweb.removed_words"]
    assert rejected["signals"].to_pylist()[0]["removed_lines"] == 3


def test_bad_words_licences_and_pardons(tmp_path):
    (tmp_path / "en").write_text("bridge over\nniver\n")
    options = {"families": ("c4_bad_words",), "measures": Measures(bad_words=BadWords(lists=f"{tmp_path}/{{language}}"))}
    kept, rejected = judge([_row(PROSE), _row(PROSE.replace("bridge over", "bridge overall"))], CurateRecipe(**options))
    assert kept.num_rows == 1 and rejected["reason"].to_pylist() == ["c4_bad_words.any"]
    pardon = options | {"measures": Measures(bad_words=BadWords(lists=f"{tmp_path}/{{language}}", keep_fraction=1.0))}
    assert judge([_row(PROSE)], CurateRecipe(**pardon))[0]["signals"].to_pylist()[0]["bad_words"] == 1
    rows = [_row(PROSE, license="cc-by-4.0", license_class="attribution"), _row(PROSE, license_class="unknown")]
    kept, rejected = judge(rows, CurateRecipe(families=("language",), licenses=("public-domain", "attribution")))
    assert kept["license_class"].to_pylist() == ["attribution"] and rejected["reason"].to_pylist() == ["license.unwanted"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"families": ["refinedweb"]}, "set lines to refinedweb"),
        ({"families": ["language"], "measures": {"lines": "c4"}}, "name c4 among the families"),
        ({"families": ["toxicity"]}, "needs toxicity.model"),
        ({"families": ["c4_bad_words"]}, "needs bad_words.lists"),
        ({"measures": {"line": "c4"}}, "did you mean lines"),
    ],
)
def test_a_recipe_that_cannot_be_measured_says_so(values, message):
    with pytest.raises(UserError, match=message):
        load_recipe(CurateRecipe, values)


def test_toxicity_is_a_share_of_sentences(tmp_path):
    good, bad = "the kind river ran past the quiet town", "you vile stupid worthless awful fool"
    (tmp_path / "examples").write_text((example(bad, True) + example(good, False)) * 200)
    train_fasttext(tmp_path / "examples", tmp_path / "model.bin", dimensions=8, epochs=10, buckets=1000)
    model = Toxicity(model=str(tmp_path / "model.bin"), label=GOOD)  # GOOD is the label asked about, here the toxic one
    recipe = CurateRecipe(families=("toxicity",), measures=Measures(toxicity=model))
    kept, rejected = judge([_row(f"{good}. {good}!\n{good}"), _row(f"{good}. {bad}. {good}.\n{bad}")], recipe)
    assert kept["signals"].to_pylist()[0]["toxic_sentences"] == 0
    assert rejected["reason"].to_pylist() == ["toxicity.sentences"] and rejected["signals"].to_pylist()[0]["toxic_sentences"] == 0.5


@pytest.mark.parametrize(
    ("family", "measures", "message"),
    [
        ("toxicity", {"toxicity": {"model": "/nowhere.bin"}}, "no fastText model at /nowhere.bin"),
        ("c4_bad_words", {"bad_words": {"lists": "/nowhere/{language}"}}, "no folder of word lists"),
        ("nemo_code", {"tokenizer": "/nowhere.json"}, "no tokenizer at"),
    ],
)
def test_what_cannot_be_read_is_the_users_mistake(family, measures, message):
    with pytest.raises(UserError, match=message):
        judge([_row(PROSE)], load_recipe(CurateRecipe, {"families": [family], "measures": measures}))


def test_signals_nobody_measured_are_null():
    row = measure(["A text."], ["en"])[0].as_py()
    assert set(row) == {field.name for field in SIGNAL_TYPE} and row["bad_words"] is None and row["removed_words"] is None and row["plain_words"] == 2


def _blocked(tmp_path, out, **recipe):
    pages = "\n".join(json.dumps({"text": PROSE, "url": url}) for url in ("http://a.example/1", "http://b.example/2", "http://c.example/ads"))
    (tmp_path / "in.jsonl").write_text(pages)
    dataset = curate([str(tmp_path / "in.jsonl")], load_recipe(CurateRecipe, {"families": [], **recipe}), str(tmp_path / out))
    return [url for (url,) in dataset.scan_rejected(["url"]).collect().rows()] if dataset.rejected_rows else []


def test_a_changed_list_is_another_run(tmp_path):
    """Identity is what the lists hold, in the run's folder and in what a process keeps of them."""
    (tmp_path / "domains.txt").write_text("a.example\n")
    (tmp_path / "easy.txt").write_text("||nobody.example^\n")
    lists = {"urls": {"domains": [str(tmp_path / "domains.txt")], "easylists": [str(tmp_path / "easy.txt")]}}
    assert _blocked(tmp_path, "one", **lists) == ["http://a.example/1"]
    assert _blocked(tmp_path, "one", **lists) == ["http://a.example/1"], "unchanged: the same run, complete"
    (tmp_path / "domains.txt").write_text("b.example\n")
    with pytest.raises(UserError, match=r"output folder of another run \(differs in config key urls\)"):
        _blocked(tmp_path, "one", **lists)
    assert _blocked(tmp_path, "two", **lists) == ["http://b.example/2"]
    (tmp_path / "easy.txt").write_text("/ads|\n")
    assert _blocked(tmp_path, "three", **lists) == ["http://b.example/2", "http://c.example/ads"]


def test_bad_word_lists_and_pins(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words/de").write_text("pfui\n")
    recipe = {"families": ["c4_bad_words"], "measures": {"bad_words": {"lists": str(tmp_path / "words/{language}")}}}
    assert _blocked(tmp_path, "one", **recipe) == []
    (tmp_path / "words/en").write_text("bridge\n")
    with pytest.raises(UserError, match="differs in config key measures"):
        _blocked(tmp_path, "one", **recipe)
    assert len(_blocked(tmp_path, "two", **recipe)) == 3
    (tmp_path / "list").write_text("a.example\n")
    kept = CurateRecipe(urls=UrlLists(domains=(str(tmp_path / "list"),))).pinned()
    assert kept.pinned() == kept and kept.urls.domains[0].startswith(f"{tmp_path}/list#sha256=")
    (tmp_path / "list").write_text("b.example\n")
    with pytest.raises(UserError, match="list is not the file that the recipe pins"):
        _blocked(tmp_path, "three", urls={"domains": list(kept.urls.domains)})
    with pytest.raises(UserError, match="no list or model .*/absent"):
        _blocked(tmp_path, "four", urls={"hard": [str(tmp_path / "absent")]})
