"""Forward lineage names exactly the steps at which runs read a document: those that their loaders served, as recorded while they trained."""

import json
import shutil
from collections import Counter

import pytest
from micro_world import micro  # noqa: F401

from flows.cli import run as gristmill
from flows.consumption import consumptions, datasets_in, journey
from pipelines.errors import UserError
from pipelines.loader import TokenStream
from pipelines.shards import tokenize
from pipelines.shardset import ShardSet
from training.conversations import ConversationWindows
from training.pretrain import PretrainRecipe, pretrain
from training.sft import SftRecipe, sft

SETTINGS = {"precision": "fp32", "checkpoint_every": 0}


@pytest.fixture(scope="module")
def trained(micro, tmp_path_factory):  # noqa: F811
    """A pretraining and a fine-tuning run of a few steps, and what each read: {run: Counter of (step, id)}."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("text", "problems", "shards"):
        shutil.copytree(micro[name], folder / name)
    read = {"pretrain": Counter(), "sft": Counter()}
    with pytest.MonkeyPatch.context() as patch:
        served, windows = TokenStream.batch, ConversationWindows.batch

        def batch(stream, step, *arguments):
            spans = {(row, span.document_id) for row in range(stream.batch_size) for span in stream.provenance(step, row)}
            read["pretrain"].update((step, identity) for _, identity in spans)
            return served(stream, step, *arguments)

        def window(conversations, step):
            made = windows(conversations, step)
            read["sft"].update((step, identity) for row in made.document_ids for identity in row)
            return made

        patch.setattr(TokenStream, "batch", batch)
        patch.setattr(ConversationWindows, "batch", window)
        pretrain(PretrainRecipe(shards=str(folder / "shards"), init_from=micro["model"], steps=5, **SETTINGS), str(folder / "pretrain"))
        sft(SftRecipe(init_from=micro["model"], datasets=[str(folder / "problems")], steps=4, batch_size=2, **SETTINGS), str(folder / "sft"))
    return folder, read


def test_steps_are_those_that_were_read(trained):
    folder, read = trained
    for identity in {identity for counts in read.values() for _, identity in counts} | {"t079"}:
        found = {one.kind: Counter(one.steps) for one in consumptions(str(folder), [identity], datasets_in(str(folder)))}
        expected = {kind: Counter({key: count for key, count in counts.items() if key[1] == identity}) for kind, counts in read.items()}
        assert found == {kind: counts for kind, counts in expected.items() if counts}


def test_a_run_keeps_its_plan_when_the_shards_get_another(trained, tmp_path):
    """Planning anew (another seed, other weights) leaves what an earlier run read as it was."""
    folder, read = trained
    copy = shutil.copytree(folder, tmp_path / "copy")
    shards = ShardSet.open(str(copy / "shards"))
    identity = next(identity for _, identity in sorted(read["pretrain"]))
    before = [(one.kind, one.steps) for one in consumptions(str(copy), [identity], datasets_in(str(copy)))]
    sources = tuple(source.model_copy(update={"dataset": shards.dataset_uri(source.name)}) for source in shards.mixture.sources)
    anew = tokenize(shards.mixture.model_copy(update={"seed": 99, "sources": sources}), copy / "shards" / "tokenizer.json", shards.uri)
    assert anew.plan.digest != shards.plan.digest
    assert [(one.kind, one.steps) for one in consumptions(str(copy), [identity], datasets_in(str(copy)))] == before


def test_the_command_follows_a_page(trained, tmp_path, capsys):
    folder, read = trained
    identity = next(identity for _, identity in sorted(read["pretrain"]) if identity.startswith("t"))
    assert gristmill(["trace", str(folder), "--url", identity, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [passage["stage"] for passage in found["passages"]] == ["rows", "tokenize"]
    (one,) = found["consumptions"]
    assert one["kind"] == "pretrain" and one["steps_done"] == 5
    assert gristmill(["trace", str(folder), "--url", identity]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pretrain, 5 steps" in shown and f"{len(one['steps'])} times, at steps" in shown
    assert gristmill(["forget", str(folder / "shards"), "--id", identity, "--out", str(tmp_path / "new"), "--workers", "0", "--json"]) == 0
    assert f"pretrain ({len(one['steps'])} times)" in json.loads(capsys.readouterr().out)["runs that read them"]


def test_mistakes_are_told(trained, capsys):
    folder, _ = trained
    assert gristmill(["trace", str(folder)]) == 2
    assert "--step" in capsys.readouterr().err
    with pytest.raises(UserError, match="no document with this URL or id"):
        journey(str(folder), "nobody")
