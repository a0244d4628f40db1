"""A whole search on a micro model: it proposes, confirms, plots, and running it again runs nothing again."""

import json

import pytest
from typer.testing import CliRunner

from flows.mixture_search import SearchRecipe, search
from model import chat
from pipelines.errors import UserError
from pipelines.mixture import Mixture, Source, Validation, load_mixture
from pipelines.tokenizer import train_tokenizer

MICRO = {"pattern": "-*", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "mtp_depth": 0}


@pytest.mark.slow
def test_a_search_is_resumable_and_ends_in_a_mixture(tmp_path):
    from micro_world import write_dataset

    words = ("red green blue violet".split(), "one two three four".split())
    sources = []
    for number, kind in enumerate(words):
        rows = [{"id": f"{number}-{i}", "text": " ".join(kind[(i * k) % 4] for k in range(30))} for i in range(80)]
        sources.append(Source(name=f"s{number}", dataset=write_dataset(tmp_path / f"s{number}", rows), weight=1, max_repetition=9))
    tokenizer = str(train_tokenizer([source.dataset for source in sources], 300, tmp_path / "tokenizer", special_tokens=chat.SPECIAL_TOKENS))
    mixture = Mixture(sources=tuple(sources), sequence_length=32, batch_size=4, validation=Validation(fraction=0.2))
    recipe = SearchRecipe(proxies=4, proxy_steps=4, confirm_steps=6, confirm_seeds=1, eval_tokens=512, model=MICRO, targets={"s1": 1})
    first = search(mixture, tokenizer, str(tmp_path / "out"), recipe)
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("done.json")}
    assert len(runs) == 6 and first["held_out"] == ["s0", "s1"] and first["targets"] == [0, 1]
    assert abs(sum(first["proposed"].values()) - 1) < 0.001
    assert (tmp_path / "out/search.svg").read_text().startswith("<svg")
    assert {source.name for source in load_mixture(tmp_path / "out/mixture.yaml").sources} == {"s0", "s1"}
    assert search(mixture, tokenizer, str(tmp_path / "out"), recipe) == first
    assert all(path.stat().st_mtime_ns == before for path, before in runs.items())
    more = search(mixture, tokenizer, str(tmp_path / "out"), recipe.model_copy(update={"proxies": 5}))
    assert more["proxies"][:4] == first["proxies"]
    with pytest.raises(UserError, match="no source 's9' to score"):
        search(mixture, tokenizer, str(tmp_path / "out"), recipe.model_copy(update={"targets": {"s9": 1}}))
    with pytest.raises(UserError, match="validation.fraction above 0"):
        search(mixture.model_copy(update={"validation": Validation()}), tokenizer, str(tmp_path / "out"), recipe)


def test_mix_plans_over_shards_and_goes_on_after_a_plan(tmp_path):
    from micro_world import write_dataset

    from flows.cli import app
    from pipelines.mixture import save_mixture
    from pipelines.shards import tokenize

    rows = [{"id": f"{i}", "text": "seven sacks of grain " * 9} for i in range(60)]
    uri = write_dataset(tmp_path / "web", rows)
    tokenizer = train_tokenizer([uri], 300, tmp_path / "tokenizer", special_tokens=chat.SPECIAL_TOKENS)
    mixture = Mixture(sources=(Source(name="web", dataset=uri, weight=1),), sequence_length=32, batch_size=4)
    shards = tokenize(mixture, tokenizer, str(tmp_path / "shards"))
    path = save_mixture(mixture, tmp_path / "m.yaml")
    asked = ["mix", str(path), "--shards", shards.uri, "--json"]
    whole = json.loads(CliRunner().invoke(app, asked).stdout)
    assert whole["digest"] == shards.plan.digest
    after = json.loads(CliRunner().invoke(app, [*asked, f"after={{plan: {whole['digest'][:12]}, step: 5}}"]).stdout)
    assert after["lanes"][0]["consumed"] == 20 and sum(p["steps"] for p in after["phases"]) == shards.plan.steps - 5
