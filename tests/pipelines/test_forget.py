"""Forgotten documents are in no new shard, nor is what was made from them; the rest is as if they had never been there."""

import json

import pytest
from shard_sets import dataset, problem_rows, web_rows

from model.chat import SPECIAL_TOKENS
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.forget import forget
from pipelines.mixture import Mixture, Source
from pipelines.shards import tokenize
from pipelines.tokenizer import train_tokenizer

SETTINGS = {"sequence_length": 32, "batch_size": 4}


def mixture(web, made):
    text = Source(name="web", dataset=web, weight=1, max_repetition=4)
    sources = (text, Source(name="made", dataset=made, weight=1, format="chat", max_repetition=4))
    return Mixture(sources=sources, **SETTINGS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forget")
    web = dataset(folder, "web", web_rows(50), parts=2)
    seeds = dataset(folder, "seeds", [row | {"parents": [f"web0-{i:04d}"]} for i, row in enumerate(problem_rows(30))], inputs=[web])
    rows = [row | {"id": f"made-{i}", "parents": [row["id"]]} for i, row in enumerate(problem_rows(30))]
    made = dataset(folder, "made", rows, inputs=[seeds])
    tokenizer = train_tokenizer([web], 300, folder, special_tokens=SPECIAL_TOKENS)
    return folder, tokenizer, tokenize(mixture(web, made), tokenizer, str(folder / "shards"))


def test_the_new_shards_are_those_without_the_documents(run, tmp_path):
    folder, tokenizer, old = run
    result = forget(old.uri, ["web0-0003", "web0-0040"], str(tmp_path / "new"))
    assert result.descendants == ("made-3", "problem-0003")
    web = dataset(tmp_path, "web", [row for row in web_rows(50) if row["id"] not in ("web0-0003", "web0-0040")])
    made = dataset(tmp_path, "made", [row | {"id": f"made-{i}", "parents": [row["id"]]} for i, row in enumerate(problem_rows(30)) if i != 3])
    scratch = tokenize(mixture(web, made), tokenizer, str(tmp_path / "scratch"))
    for suffix in (".bin", ".idx", ".ends", ".mask"):
        assert {k: v for k, v in result.shards.manifest["sha256"].items() if k.endswith(suffix)} == {
            k: v for k, v in scratch.manifest["sha256"].items() if k.endswith(suffix)
        }
    assert result.shards.plan == scratch.plan


def test_with_many_shards_the_documents_and_their_tokens_are_those_of_scratch(run, tmp_path):
    folder, tokenizer, _ = run
    web, made = dataset(tmp_path, "web", web_rows(200, seed=3), parts=4), dataset(tmp_path, "made", problem_rows(10))
    old = tokenize(mixture(web, made), tokenizer, str(tmp_path / "shards"), shard_bytes=8000)
    gone = {"web3-0000", "web3-0007", "web3-0120"}
    new = forget(old.uri, gone, str(tmp_path / "new")).shards
    left = dataset(tmp_path, "left", [row for row in web_rows(200, seed=3) if row["id"] not in gone], parts=4)
    scratch = tokenize(mixture(left, made), tokenizer, str(tmp_path / "scratch"), shard_bytes=8000)
    assert len(new.shards("web")) > 2
    held = lambda shards: [(shard.ids[i], shard.document(i).tolist()) for shard in shards.shards("web") for i in range(shard.documents)]
    assert held(new) == held(scratch)


def test_it_leaves_tombstones_and_a_record(run, tmp_path):
    result = forget(run[2], ["web0-0003"], str(tmp_path / "new"))
    stones = Dataset.open(str(tmp_path / "new/web")).scan_rejected().collect()
    assert stones.to_dicts() == [{"id": "web0-0003", "reason": "forget.requested", "detail": ""}]
    assert Dataset.open(str(tmp_path / "new/made")).reasons == {"forget.descendant": 1}
    record = json.loads((tmp_path / "new/shards/superseded.json").read_text())
    assert record["manifest"] == run[2].manifest
    assert {reading.document_id for reading in result.readings} == {"web0-0003", "made-3"}
    assert record["readings"] == len(result.readings)
    assert {uri.rpartition("/")[2] for uri in result.superseded} == {"shards", "web", "made", "seeds"}
    again = forget(run[2], ["web0-0003"], str(tmp_path / "new"))
    assert again.shards.manifest == result.shards.manifest


def test_unknown_documents_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="none of the 1 documents is in its datasets"):
        forget(run[2], ["nobody"], str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
