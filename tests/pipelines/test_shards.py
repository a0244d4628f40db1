"""Shards hold every document once, byte for byte the same whoever wrote them, and a flipped bit is found."""

import json
import struct

import numpy as np
import pytest
from shard_sets import dataset, make, problem_rows, web_rows

from pipelines.cluster import open_cluster
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.loader import ShardSupply
from pipelines.mixture import Mixture, Source, Validation
from pipelines.shards import ShardSet, check, inspect, tokenize, verify
from pipelines.tokenizer import encode, load_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return folder, *make(folder)


def read_megatron(path):
    """Megatron's format once more, from its description and not from our code."""
    data = open(f"{path}.idx", "rb").read()
    magic, version, code, sequences, documents = struct.unpack_from("<9sQBQQ", data)
    assert (magic, version, code) == (b"MMIDIDX\0\0", 1, 8)
    at = 34
    lengths = struct.unpack_from(f"<{sequences}i", data, at)
    pointers = struct.unpack_from(f"<{sequences}q", data, at + 4 * sequences)
    index = struct.unpack_from(f"<{documents}q", data, at + 12 * sequences)
    assert len(data) == at + 12 * sequences + 8 * documents
    assert index == tuple(range(sequences + 1))
    tokens = open(f"{path}.bin", "rb").read()
    assert len(tokens) == 2 * sum(lengths)
    return [struct.unpack_from(f"<{n}H", tokens, pointer) for n, pointer in zip(lengths, pointers, strict=True)]


def test_an_independent_reader_finds_every_document(made):
    _, mixture, tokenizer_path, shards = made
    tokenizer = load_tokenizer(tokenizer_path)
    found = {}
    for split in ("train", "validation"):
        for shard in shards.shards("web", split):
            for identity, tokens in zip(shard.ids, read_megatron(shards.path(shard.prefix)), strict=True):
                assert identity not in found
                found[identity] = tokens
    rows = web_rows(120)
    assert len(shards.shards("web")) > 1
    assert found == {row["id"]: (*encode(tokenizer, row["text"]), 2) for row in rows}


def test_chat_is_rendered_and_masked(made):
    shards = made[3]
    tokenizer = load_tokenizer(made[2])
    shard = shards.shards("problems")[0]
    index = shard.ids.index("problem-0007")
    start, end = int(shard.ends[index - 1]), int(shard.ends[index])
    tokens, mask = shard.tokens[start:end], shard.mask[start:end]
    assert tokens[-1] == 2 and mask[-1] == 0
    assert tokenizer.decode(tokens[mask == 1].tolist(), skip_special_tokens=False) == "<think>\n7 and 2 make 9\n</think>\n9<|im_end|>"


def test_serial_and_processes_give_the_same_bytes(made, tmp_path):
    with open_cluster(2) as cluster:
        _, _, spread = make(tmp_path, cluster=cluster)
    assert spread.manifest["sha256"] == made[3].manifest["sha256"]
    assert spread.plan.digest == made[3].plan.digest
    assert spread.manifest == made[3].manifest


def test_every_row_is_accounted_for_and_validation_is_apart(made):
    shards = made[3]
    rows = Dataset.open(shards.uri)
    assert (rows.rows_in, rows.rows, rows.rejected_rows) == (200, 200, 0)
    train = {i for name in shards.sources for shard in shards.shards(name) for i in shard.ids}
    held = {i for name in shards.sources for shard in shards.shards(name, "validation") for i in shard.ids}
    assert 8 <= len(held) <= 35 and not train & held and len(train | held) == 200


def test_validation_documents_are_the_same_in_every_mixture(made, tmp_path):
    _, _, other = make(tmp_path, web=60, problems=0 + 50, parts=1, tokens=2000, seed=9)
    first = {i for name in made[3].sources for shard in made[3].shards(name, "validation") for i in shard.ids}
    second = {i for name in other.sources for shard in other.shards(name, "validation") for i in shard.ids}
    common = {f"web0-{i:04d}" for i in range(60)} | {f"problem-{i:04d}" for i in range(50)}
    assert second == first & common


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".docs.parquet", ".mask"])
def test_a_flipped_bit_is_found_and_named(tmp_path, suffix):
    _, _, shards = make(tmp_path, web=30, problems=20)
    assert verify(shards.uri) == []
    path = sorted((tmp_path / "shards/files").glob(f"problems-*{suffix}"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    faults = verify(shards.uri)
    assert len(faults) == 1 and faults[0].startswith(f"files/{path.name}: damaged")
    path.unlink()
    assert verify(shards.uri) == [f"files/{path.name}: missing"]


def test_other_weights_only_plan_anew(made, tmp_path):
    mixture, tokenizer, shards = make(tmp_path)
    before = (tmp_path / "shards/dataset.json").stat().st_mtime_ns
    sources = tuple(source.model_copy(update={"weight": weight}) for source, weight in zip(mixture.sources, (80, 20), strict=True))
    again = tokenize(mixture.model_copy(update={"sources": sources}), tokenizer, shards.uri, shard_bytes=8000)
    assert (tmp_path / "shards/dataset.json").stat().st_mtime_ns == before
    assert again.plan.digest != shards.plan.digest and ShardSet.open(shards.uri).plan == again.plan
    changed = mixture.model_copy(update={"validation": Validation(fraction=0.5)})
    with pytest.raises(UserError, match=r"output folder of another run \(differs in config key validation"):
        tokenize(changed, tokenizer, shards.uri, shard_bytes=8000)


def test_where_and_rehydration(tmp_path):
    rows = web_rows(100)
    _, tokenizer, _ = make(tmp_path, web=40, problems=20)
    source = Source(name="de", dataset=dataset(tmp_path, "more", rows), weight=1, where="language = 'de'", rehydrate=True)
    shards = tokenize(Mixture(sources=(source,), sequence_length=32, batch_size=2), tokenizer, str(tmp_path / "de"))
    chosen = [row for row in rows if row["language"] == "de"]
    assert Dataset.open(shards.uri).reasons == {"mixture.where": 100 - len(chosen)}
    copies = {1: 1, 2: 2, 5: 5}  # FineWeb-2's table
    assert shards.shards("de")[0].ids == [row["id"] for row in chosen for _ in range(copies[row["cluster_size"]])]


def test_rows_that_cannot_be_encoded_leave_with_a_reason(tmp_path):
    rows = problem_rows(20)
    rows[3] = rows[3] | {"messages": [{"role": "oracle", "content": "?"}]}
    rows[4] = rows[4] | {"messages": []}
    _, tokenizer, _ = make(tmp_path, web=40, problems=20)
    source = Source(name="odd", dataset=dataset(tmp_path, "odd", rows), weight=1, format="chat")
    shards = tokenize(Mixture(sources=(source,), sequence_length=32, batch_size=2), tokenizer, str(tmp_path / "out"))
    assert Dataset.open(shards.uri).reasons == {"mixture.chat": 1, "mixture.empty": 1}
    assert "oracle" in Dataset.open(shards.uri).scan_rejected().collect().filter(reason="mixture.chat")["detail"][0]
    assert len(shards.shards("odd")[0].ids) == 18


def test_an_interrupted_run_is_finished_with_the_same_bytes(made, tmp_path, monkeypatch):
    import pipelines.shards

    write, calls = pipelines.shards._ShardWriter.close, []

    def dying(writer):
        calls.append(writer.prefix)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(writer)

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.shards._ShardWriter, "close", dying)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path)
    with pytest.raises(UserError, match="not finished"):
        ShardSet.open(str(tmp_path / "shards"))
    receipts = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards/receipts").iterdir()}
    assert receipts
    _, _, shards = make(tmp_path)
    assert all(path.stat().st_mtime_ns == before for path, before in receipts.items())
    assert shards.manifest == made[3].manifest


def test_mistakes_are_refused_before_anything_is_written(tmp_path):
    mixture, tokenizer, _ = make(tmp_path, web=40, problems=20)
    web = mixture.sources[0]

    def refused(match, out="never", **changes):
        source = web.model_copy(update=changes.pop("source", {}))
        with pytest.raises(UserError, match=match):
            tokenize(mixture.model_copy(update={"sources": (source,), **changes}), tokenizer, str(tmp_path / out))
        assert not (tmp_path / "never").exists()

    refused("source 'web' falls [0-9,]+ tokens short", tokens=10**6, source={"max_repetition": 1})
    refused("source 'web': .* has no column 'messages'", source={"format": "chat"})
    refused("where 'langauge = 1'.*langauge", source={"where": "langauge = 1"})
    refused("is not a condition", source={"where": "cluster_size + 1"})
    refused("no dataset here", source={"dataset": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match="no chat encoder 'model.chat:nothing'"):
        check(mixture, tokenizer, "model.chat:nothing")


def test_the_estimate_is_near_the_truth(made):
    _, mixture, tokenizer, shards = made
    for share, exact in zip(check(mixture, tokenizer).available.values(), (ShardSupply(shards).whole(name, 32, "concat") for name in shards.sources), strict=True):
        assert abs(share.tokens - exact.tokens) < 0.15 * exact.tokens  # the split by hash is all that differs


def test_inspect_shows_text(made):
    shown = list(inspect(made[3].uri, 2))
    assert [(d.source, d.split) for d in shown] == [(s, t) for s in ("web", "problems") for t in ("train", "validation") for _ in range(2)]
    texts = {row["id"]: row["text"] for row in web_rows(120)}
    assert shown[0].text == texts[shown[0].id] + "</s>"
    with pytest.raises(UserError, match="no source 'x'; there are web, problems"):
        list(inspect(made[3].uri, 2, "x"))


def test_the_manifest_holds_no_path_of_the_machine(made):
    folder, shards = made[0], made[3]
    assert str(folder) not in json.dumps(shards.manifest)
    assert shards.dataset_uri("web") == str(folder / "web")


def test_shards_are_read_from_any_store_and_checked_on_arrival(made, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "cache"))

    fs = fsspec.filesystem("memory")
    fs.put(made[3].uri, "/there", recursive=True)
    there = ShardSet.open("memory://there")
    assert np.array_equal(there.shards("web")[0].tokens, made[3].shards("web")[0].tokens)
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "another"))
    with fs.open("/there/files/web-train-00000.bin", "wb") as file:
        file.write(b"\0\0")
    with pytest.raises(UserError, match="web-train-00000.bin: the bytes that arrived"):
        _ = ShardSet.open("memory://there").shards("web")[0].tokens
    assert [problem["id"] for problem in problem_rows(1)] == ["problem-0000"]
