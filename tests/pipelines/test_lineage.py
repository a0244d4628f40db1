"""A token leads to its record or its generator, and a document to every step that reads it."""

import shutil
from dataclasses import asdict

import pytest
from rich.console import Console
from shard_sets import dataset, web_rows

from model.chat import SPECIAL_TOKENS
from pipelines.errors import UserError
from pipelines.lineage import Reading, ids_of, readings, trace
from pipelines.loader import TokenStream
from pipelines.mixture import Mixture, Source
from pipelines.shards import tokenize
from pipelines.tokenizer import load_tokenizer, train_tokenizer


def page(row, index):
    record = {"url": f"https://mill.example/{index}", "host": "mill.example" if index % 4 else "other.example", "source": "crawl-00.warc.gz"}
    place = {"offset": 1000 * index, "length": 900, "captured_at": "2024-05-18T10:00:00Z", "license": "CC-BY-4.0"}
    measured = {"signals": {"words": len(row["text"].split())}, "decisions": {"gopher_quality": True}}
    return row | record | place | measured


def solved(index, **values):
    messages = [{"role": "user", "content": f"{index} + 1 = ?"}, {"role": "assistant", "content": f"<think>\nadd\n</think>\n{index + 1}"}]
    return {"id": f"made-{index}", "messages": messages, **values}


@pytest.fixture(scope="module", params=["concat", "best_fit"])
def run(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("run")
    pages = [page(row, index) for index, row in enumerate(web_rows(60))]
    curated = dataset(folder, "curated", pages)
    deduped = dataset(folder, "deduped", [row | {"cluster_id": row["id"], "cluster_size": 3} for row in pages], inputs=[curated])
    asked = [{"id": f"problem-{i}", "task": "addition", "question": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(40)]
    problems = dataset(folder, "problems", asked)
    first = [solved(i, generator="tiny@abc", task="addition", prompt_digest="d" * 8, parents=[f"problem-{i}"], verified=True) for i in range(40)]
    drafts = dataset(folder, "drafts", first, inputs=[problems])
    second = [row | {"id": row["id"].replace("made", "again"), "parents": [row["id"]]} for row in first]
    generated = dataset(folder, "generated", second, inputs=[drafts])
    tokenizer = train_tokenizer([deduped], 320, folder, special_tokens=SPECIAL_TOKENS)
    sources = (
        Source(name="web", dataset=deduped, weight=1, max_repetition=3),
        Source(name="made", dataset=generated, weight=1, format="chat", max_repetition=3),
    )
    mixture = Mixture(sources=sources, sequence_length=64, batch_size=5, packing=request.param)
    return folder, tokenize(mixture, tokenizer, str(folder / "shards"))


def first_sample(shards, source):
    stream = TokenStream(shards)
    return next((step, row) for step in range(stream.steps) for row in range(5) if stream.provenance(step, row)[0].source == source)


def test_a_page_is_traced_to_its_record(run):
    step, sample = first_sample(run[1], "web")
    traced = trace(run[1].uri, step, sample)
    rows = {row["id"]: page(row, index) for index, row in enumerate(web_rows(60))}
    for entry in traced.spans:
        row, document = rows[entry.span.document_id], entry.document
        assert document.record == {key: row[key] for key in ("source", "offset", "length", "url", "captured_at", "license")}
        assert document.cluster == {"cluster_id": row["id"], "cluster_size": 3}
        assert document.signals == row["signals"] and document.decisions == row["decisions"]
        passed = [(station.name, station.found, station.changed) for station in document.stations]
        assert passed == [("deduped", True, False), ("curated", True, False)]
        assert entry.text.removesuffix("</s>").strip("\N{REPLACEMENT CHARACTER}") in row["text"]


def test_a_synthetic_document_is_traced_up_to_the_problem(run):
    step, sample = first_sample(run[1], "made")
    document = trace(run[1], step, sample).spans[0].document
    index = document.id.removeprefix("again-")
    assert document.made_by["generator"] == "tiny@abc" and document.made_by["verified"] is True
    (draft,) = document.parents
    assert draft.id == f"made-{index}" and draft.made_by["prompt_digest"] == "d" * 8
    (problem,) = draft.parents
    assert problem.id == f"problem-{index}" and problem.facts["question"] == f"{index} + 1 = ?" and problem.parents == ()
    chain = [[station.name for station in one.stations] for one in (document, draft, problem)]
    assert chain == [["generated"], ["drafts"], ["problems"]]  # each lies where it was made; its parents have stations of their own


def test_one_token(run):
    stream = TokenStream(run[1])
    step, sample = first_sample(run[1], "web")
    batch = stream.batch(step)
    for token in (0, 17, 40):
        if batch.input_ids[sample, token] >= 16:
            traced = trace(run[1], step, sample, token)
            assert len(traced.spans) == 1
            assert traced.token_text == load_tokenizer(run[0]).decode([int(batch.input_ids[sample, token])])
    with pytest.raises(UserError, match="position 64 of step"):
        trace(run[1], step, sample, 64)
    with pytest.raises(UserError, match="sample 5 is outside"):
        trace(run[1], step, 5)


def test_readings_are_the_inverse_of_traces(run):
    stream = TokenStream(run[1])
    expected = {
        (span.source, span.document_id, step, sample)
        for step in range(stream.steps)
        for sample in range(stream.batch_size)
        for span in stream.provenance(step, sample)
    }
    every = {identity for _, identity, _, _ in expected}
    found = list(readings(run[1], every))
    assert {(r.source, r.document_id, r.step, r.sample) for r in found} == expected
    assert len({r.epoch for r in found}) > 1
    one = sorted(every)[0]
    until = sorted(r.step for r in found if r.document_id == one)[-1]
    assert all(isinstance(r, Reading) and r.step < until for r in readings(run[1], [one], until=until))


def test_pages_are_found_by_url_and_host(run):
    assert ids_of(run[1], url="https://mill.example/7") == ["web0-0007"]
    assert len(ids_of(run[1], host="other.example")) == 15
    with pytest.raises(UserError, match="give a URL or a host"):
        ids_of(run[1])


def test_it_prints_as_a_tree_and_as_json(run):
    step, sample = first_sample(run[1], "made")
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    traced = trace(run[1], step, sample)
    console.print(traced)
    text = console.export_text()
    passed = "datasets  problems"
    for piece in (f"step {step}, sample {sample}", "generator  tiny@abc", "parents", "document problem-", passed):
        assert piece in text
    assert asdict(traced)["spans"][0]["document"]["parents"][0]["parents"][0]["facts"]["answer"]


def test_a_moved_run_and_a_vanished_dataset(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "moved")
    moved = str(tmp_path / "moved/shards")
    step, sample = first_sample(moved, "web")
    stations = trace(moved, step, sample).spans[0].document.stations
    assert [station.name for station in stations] == ["deduped", "curated"]
    shutil.rmtree(tmp_path / "moved/deduped")
    gone = trace(moved, step, sample).spans[0]
    assert gone.document is None and "deduped is not at" in gone.missing
