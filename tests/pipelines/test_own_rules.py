"""A recipe's own rules refuse pages with their own reasons, in curation and in selection alike."""

import json

import pytest

from pipelines.curate import CurateRecipe, curate
from pipelines.curate.select import select
from pipelines.curate.why import explain
from pipelines.errors import UserError
from pipelines.recipe import load_recipe

PROSE = "The river ran past the old mill and on to the sea, where the boats of the village lay. It was a quiet evening. "


def recipe(*rules):
    return load_recipe(CurateRecipe, {"families": [], "rules": [{"name": name, "keep": keep} for name, keep in rules]})


def test_own_rules_refuse_explain_and_select(tmp_path):
    texts = [PROSE * 3, PROSE + "1234567890 " * 40, PROSE]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": str(i), "text": text, "url": f"http://a.org/{i}"}) + "\n" for i, text in enumerate(texts)))
    curated = curate([str(tmp_path / "in.jsonl")], recipe(("my.plain", "digits <= 0.2 and words >= 30")), str(tmp_path / "curated"))
    assert curated.scan(["url"]).collect()["url"].to_list() == ["http://a.org/0"]
    assert set(curated.scan_rejected().collect()["reason"]) == {"my.plain"}
    (fate,) = explain("http://a.org/2", [curated.uri])
    assert [(decision.rule, decision.passed) for decision in fate.decisions] == [("my.plain", False)] and "words 2" in fate.detail
    selected = select([curated.uri], recipe(("my.plain", "digits <= 0.2")), str(tmp_path / "selected"))
    assert sorted(selected.scan(["url"]).collect()["url"]) == ["http://a.org/0", "http://a.org/2"]


def test_a_mistake_names_the_signal():
    with pytest.raises(UserError, match="no signal 'digts'; did you mean digits"):
        recipe(("my.plain", "digts <= 0.2"))
    with pytest.raises(UserError, match="gopher_quality.words exists already"):
        recipe(("gopher_quality.words", "words >= 30"))
