"""Mixtures inside mixtures, rows by column, long-context phases and fill-in-the-middle."""

import random
from fractions import Fraction

import pytest
from shard_sets import dataset, web_rows

from model.chat import SPECIAL_TOKENS
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.fill_in_middle import FillInMiddleEncoder, cut
from pipelines.mixture import FillInMiddle, Mixture, Phase, Source, Validation, load_mixture, plan
from pipelines.shards import tokenize
from pipelines.tokenizer import load_tokenizer, train_tokenizer


def leaf(name, weight, **values):
    return Source(name=name, dataset=f"/data/{name}", weight=weight, **values)


NESTED = (leaf("web", 60), Source(name="made", weight=40, sources=(leaf("maths", 3), Source(name="code", weight=1, sources=(leaf("py", 1), leaf("c", 1))))))


def test_weights_multiply_and_the_tree_is_printed():
    mixture = Mixture(name="m", sequence_length=128, batch_size=8, tokens=10**6, sources=NESTED)
    assert mixture.weights() == [{"web": Fraction(3, 5), "maths": Fraction(3, 10), "py": Fraction(1, 20), "c": Fraction(1, 20)}]
    planned = plan(mixture, dict.fromkeys(["web", "maths", "py", "c"], 10**6))
    assert [row[:2] for row in planned.tree] == [(0, "web"), (0, "made"), (1, "maths"), (1, "code"), (2, "py"), (2, "c")]
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(planned)
    text = console.export_text()
    assert "made  40.00%" in text and "        ├── py  5.00%" in text
    flat = plan(mixture.flat(), planned.available)
    assert all(abs(a.sequences - b.sequences) <= 1 for a, b in zip(flat.phases[0].shares, planned.phases[0].shares, strict=True))


def test_phases_weigh_groups_and_datasets():
    phases = (Phase(tokens=10**5, weights={"made": 1}), Phase(tokens=10**5, weights={"web": 1, "made": 2, "py": 1}))
    first, second = Mixture(sources=NESTED, phases=phases).weights()
    assert first == {"web": 0, "maths": Fraction(3, 4), "py": Fraction(1, 8), "c": Fraction(1, 8)}
    assert second == {"web": 1, "maths": 2 * Fraction(6, 7), "py": 1, "c": 2 * Fraction(1, 7)}
    with pytest.raises(ValueError, match="weighs the source 'mad'"):
        Mixture(sources=NESTED, phases=(Phase(tokens=1, weights={"mad": 1}),))


def test_mixtures_are_read_from_files_and_may_not_hold_themselves(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/code.yaml").write_text("sources: [{name: py, dataset: py, weight: 2}, {name: c, dataset: ../c, weight: 1}]")
    (tmp_path / "m.yaml").write_text("sources: [{name: web, dataset: web, weight: 1}, {name: code, mixture: inner/code.yaml, weight: 1}]")
    loaded = load_mixture(tmp_path / "m.yaml")
    assert {s.name: s.dataset for s in loaded.datasets()} == {"web": f"{tmp_path}/web", "py": f"{tmp_path}/inner/py", "c": f"{tmp_path}/c"}
    assert loaded.weights()[0]["py"] == Fraction(1, 3)
    (tmp_path / "inner/code.yaml").write_text("sources: [{name: py, mixture: ../m.yaml, weight: 2}]")
    with pytest.raises(UserError, match=r"holds itself \(m.yaml -> code.yaml -> m.yaml\)"):
        load_mixture(tmp_path / "m.yaml")
    (tmp_path / "inner/code.yaml").write_text("sources: [{name: web, dataset: py, weight: 2}]")
    with pytest.raises(UserError, match="two sources are called 'web'"):
        load_mixture(tmp_path / "m.yaml")


def test_a_source_is_one_thing():
    for values in ({}, {"dataset": "x", "mixture": "y"}, {"mixture": "y", "where": "a = 1"}, {"dataset": "x", "format": "chat", "fim": {}}, {"dataset": "x", "licence": ["free"]}):
        with pytest.raises(ValueError, match="source 'a'"):
            Source(name="a", weight=1, **values)


def test_rows_are_chosen_by_language_quality_and_licence(tmp_path):
    rng = random.Random(3)
    licences = ["cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", None, "gnu-fdl"]
    rows = [row | {"quality_bucket": rng.randrange(20), "license": rng.choice(licences)} for row in web_rows(300)]
    uri = dataset(tmp_path, "rows", rows)
    tokenizer = train_tokenizer([uri], 320, tmp_path / "tokenizer", special_tokens=SPECIAL_TOKENS)
    source = Source(name="web", dataset=uri, weight=1, language=("en",), quality=(8, 19), licence=("attribution", "share-alike"), where="cluster_size < 5")
    shards = tokenize(Mixture(sources=(source,), sequence_length=32, batch_size=2), tokenizer, str(tmp_path / "shards"))
    wanted = [
        row["id"] for row in rows
        if row["language"] == "en" and row["quality_bucket"] >= 8 and row["license"] in ("cc-by-4.0", "cc-by-sa-4.0", "gnu-fdl") and row["cluster_size"] < 5
    ]
    assert shards.shards("web")[0].ids == wanted and len(wanted) > 10
    detail = Dataset.open(shards.uri).scan_rejected().collect()["detail"][0]
    assert detail == "cluster_size < 5; language en; quality 8 to 19; licence attribution or share-alike"
    with pytest.raises(UserError, match="has no column 'quality_bucket'"):
        bare = Source(name="web", dataset=dataset(tmp_path, "bare", web_rows(20)), weight=1, quality=(1, 2))
        tokenize(Mixture(sources=(bare,), sequence_length=32, batch_size=2), tokenizer, str(tmp_path / "never"))


def test_fill_in_the_middle_moves_text_and_loses_none(tmp_path):
    uri = dataset(tmp_path, "rows", web_rows(400))
    path = train_tokenizer([uri], 320, tmp_path / "tokenizer", special_tokens=SPECIAL_TOKENS)
    recipe = FillInMiddle(rate=0.6, spm=0.25)
    source = Source(name="web", dataset=uri, weight=1, fim=recipe)
    mixture = Mixture(sources=(source,), sequence_length=32, batch_size=2, validation=Validation(fraction=0.2))
    shards = tokenize(mixture, path, str(tmp_path / "shards"))
    tokenizer = load_tokenizer(path)
    texts = {row["id"]: row["text"] for row in web_rows(400)}
    orders = []
    for shard in shards.shards("web"):
        for index, identity in enumerate(shard.ids):
            ids = shard.document(index).tolist()
            assert ids.pop() == shards.eos
            if 3 not in ids:
                assert tokenizer.decode(ids) == texts[identity] and cut(recipe, identity, 99) is None
                continue
            parts = [tokenizer.decode(part) for part in split(ids, (3, 4, 5))[1:]]
            suffix_first = ids[1] == 4
            text = parts[2] + parts[1] if suffix_first else parts[0] + parts[2] + parts[1]
            assert text == texts[identity]
            orders.append(suffix_first)
    total = sum(len(shard.ids) for shard in shards.shards("web"))
    assert abs(len(orders) / total - 0.6) < 0.08 and abs(sum(orders) / len(orders) - 0.25) < 0.08
    for shard in shards.shards("web", "validation"):
        assert all(tokenizer.decode(shard.document(i).tolist()[:-1]) == texts[identity] for i, identity in enumerate(shard.ids))
    with pytest.raises(UserError, match="no token '<fim>'"):
        FillInMiddleEncoder(FillInMiddle(prefix="<fim>"), tokenizer)


def split(ids, marks):
    parts = [[]]
    for token in ids:
        if token in marks:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
