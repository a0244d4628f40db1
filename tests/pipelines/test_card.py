"""Cards say what the data says: figures are counted again here from the rows."""

import pytest
import yaml
from shard_sets import dataset, make, web_rows

from pipelines.card import card
from pipelines.errors import UserError


def header(text):
    _, values, _ = text.split("---\n", 2)
    return yaml.safe_load(values)


def test_a_datasets_card(tmp_path):
    rows = [row | {"license": "CC-BY-4.0" if i < 30 else None, "host": f"host{i}.example"} for i, row in enumerate(web_rows(50))]
    raw = dataset(tmp_path, "raw", rows)
    text = card(dataset(tmp_path, "web", rows, inputs=[raw]))
    german = sum(row["language"] == "de" for row in rows)
    assert header(text)["size_categories"] == ["n<1K"] and sorted(header(text)["language"]) == ["de", "en"]
    assert header(text)["license"] == "other"
    counts = (f"| de | {german} |", "| CC-BY-4.0 | 30 |", "| unknown | 20 |", "| raw | rows | 50 | 50 | 0 |")
    for piece in (*counts, "And 30 more.", "of 40% of the documents is unknown"):
        assert piece in text


def test_a_single_licence_is_named(tmp_path):
    assert header(card(dataset(tmp_path, "web", [{"id": "a", "license": "MIT"}])))["license"] == "mit"


def test_a_shard_sets_card(tmp_path):
    shards = make(tmp_path)[2]
    text = card(shards.uri)
    train = sum(shard.documents for shard in shards.shards("web"))
    assert f"| web | web | {train} | {120 - train} | {shards.tokens['web']:,} |" in text
    assert f"{shards.plan.tokens:,} tokens in {shards.plan.steps:,} steps" in text and shards.plan.digest in text


def test_nothing_has_no_card(tmp_path):
    with pytest.raises(UserError, match="no dataset here"):
        card(str(tmp_path))
