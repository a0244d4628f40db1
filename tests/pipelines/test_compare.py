"""Comparing recipes from signals: what it says is what selecting with each of them does."""

import collections
import json

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipelines.curate import CurateRecipe, curate
from pipelines.curate.compare import KEPT, compare
from pipelines.curate.select import select
from pipelines.errors import UserError
from pipelines.recipe import load_recipe

SENTENCE = "The old bridge over the river was rebuilt last year by the city and is open to traffic again, number {}."
A = CurateRecipe(families=("gopher_quality", "c4"))
B = load_recipe(CurateRecipe, {"families": ["gopher_quality", "fineweb"], "thresholds": {"gopher_quality.words": {"min": 150}}, "languages": ["en"]})


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    rows = [{"text": "\n".join(SENTENCE.format(f"{n} {k}") for k in range(2 + n % 14)), "id": f"d{n}", "url": f"http://a.org/{n}"} for n in range(60)]
    rows += [{"text": f"Nur ein paar deutsche Wörter über die Brücke Nummer {n}, und nicht mehr.", "id": f"g{n}"} for n in range(5)] + [{"text": ""}] * 3
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return curate([str(folder / "a.jsonl")], CurateRecipe(part_bytes=65_536), str(folder / "ds"))


def _fates(dataset):
    fates = dict.fromkeys(dataset.scan(["id"]).collect()["id"], KEPT)
    return fates | {row["id"]: row["reason"] for row in dataset.scan_rejected(["id", "reason"]).collect().iter_rows(named=True)}


def test_moves_are_those_between_two_selections(curated, tmp_path):
    found = compare(A, B, curated.uri)
    one, other = (_fates(select([curated.uri], recipe, str(tmp_path / name))) for name, recipe in (("a", A), ("b", B)))
    expected = collections.Counter((one[key], other[key]) for key in one)
    measured = {pair: rows for pair, rows in expected.items() if pair != ("read.empty", "read.empty")}
    assert {(move.before, move.after): move.rows for move in found.moves} == measured and len(measured) > 3
    assert found.rows == 68 and found.unmeasured == 3 == expected["read.empty", "read.empty"]
    assert found.kept("before")[0] == sum(fate == KEPT for fate in one.values()) and found.kept("after")[0] == sum(fate == KEPT for fate in other.values())
    moved = [move for move in found.moves if move.before != move.after]
    assert moved and all(1 <= len(move.examples) <= 3 and move.words > 0 and move.characters > move.words for move in moved)
    assert any("must be" in example["before"] + example["after"] for move in moved for example in move.examples)


def test_the_verb(curated, tmp_path):
    recipe = tmp_path / "b.yaml"
    recipe.write_text("families: [gopher_quality]\n")
    got = CliRunner().invoke(app, ["compare-recipes", "c4", str(recipe), curated.uri, "--json"])
    assert got.exit_code == 0, got.output
    assert sum(move["rows"] for move in json.loads(got.output)["moves"]) == 65
    assert "moves" in CliRunner().invoke(app, ["compare-recipes", "c4", str(recipe), curated.uri]).output


def test_only_curated_datasets(tmp_path):
    with pytest.raises(UserError, match="no dataset here"):
        compare(A, B, str(tmp_path))


def test_selection_applies_datatroves_filters_too(curated, tmp_path):
    recipe = load_recipe(CurateRecipe, {"families": [], "datatrove": [{"filter": "RegexFilter", "params": {"regex_exp": "deutsche"}}]})
    chosen = select([curated.uri], recipe, str(tmp_path / "s"))
    assert chosen.reasons == {"datatrove.RegexFilter": 5, "read.empty": 3} and chosen.rows == 60
