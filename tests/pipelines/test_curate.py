"""Curation end to end on small crawls: rows add up, reasons are exact, parts and workers change nothing, rules re-run."""

import io
import json

import pytest
from datatrove.pipeline.filters.base_filter import BaseFilter
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipelines.curate import CurateRecipe, curate
from pipelines.curate.run import captured_at
from pipelines.curate.select import select
from pipelines.curate.why import explain
from pipelines.dataset import DOCUMENT_SCHEMA
from pipelines.errors import UserError
from pipelines.recipe import load_recipe, recipe_names

ENGLISH = [
    "The old bridge over the river was rebuilt last year by the city and is open to traffic again.",
    "Many people from the villages nearby came to the opening, and the feast lasted into the night.",
    "Their mayor thanked all those who, with their work and their gifts, have helped to keep the building.",
    "It was designed in the last century by an engineer whose plans were found in the attic of a school.",
    "Children who had never seen the other bank were allowed to cross first, with flags in their hands.",
    "The repair cost less than what had been feared, and the money that is left will be spent on trees.",
    "In spring the water rises to the third stone of the pillars, but that is no danger to anyone.",
]
GERMAN = [
    "Die alte Brücke über den Fluss wurde im vergangenen Jahr von der Stadt erneuert und ist wieder für den Verkehr offen.",
    "Viele Menschen aus den Dörfern der Umgebung kamen zur Eröffnung, und das Fest dauerte bis tief in die Nacht.",
    "Der Bürgermeister dankte allen, die mit ihrer Arbeit und ihren Spenden dazu beigetragen hatten, dass sie erhalten blieb.",
    "Sie wurde im vorigen Jahrhundert von einem Ingenieur entworfen, dessen Pläne man auf dem Dachboden einer Schule fand.",
]


def _page(sentences, title="A page"):
    body = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    return f'<html><head><title>{title}</title></head><body><article>{body}</article></body></html>'.encode()


PAGES = [
    ("http://a.org/en", _page(ENGLISH, "Bridge"), "200 OK", "text/html; charset=utf-8"),
    ("http://a.org/de", _page(GERMAN), "200 OK", "text/html; charset=utf-8"),
    ("http://a.org/short", _page(ENGLISH[:2]), "200 OK", "text/html"),
    ("http://a.org/again", _page([*ENGLISH[:4], *ENGLISH[:4]]), "200 OK", "text/html"),
    ("http://a.org/curly", _page([*ENGLISH, "The function is { x } and that is all there is to it."]), "200 OK", "text/html"),
    ("http://a.org/gone", b"gone", "404 Not Found", "text/html"),
    ("http://blocked.example/x", _page(ENGLISH), "200 OK", "text/html"),
    ("http://a.org/empty", b"<html><body></body></html>", "200 OK", "text/html"),
    ("http://a.org/mail", _page([*ENGLISH, "Whoever has questions about it may write to jane@river.example.org at any time."]), "200 OK", "text/html"),
]
REASONS = {
    "http://a.org/short": "gopher_quality.words",
    "http://a.org/again": "gopher_repetition.duplicate_paragraphs",
    "http://a.org/curly": "c4.curly_bracket",
    "http://a.org/gone": "read.http_status",
    "http://blocked.example/x": "url.domain",
    "http://a.org/empty": "extract.no_text",
}


def _write(path, pages, copies=1):
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for copy in range(copies):
            for url, body, status, kind in pages:
                headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
                about = {"WARC-Date": "2024-05-01T10:00:00Z", "WARC-Record-ID": f"<urn:uuid:{url}-{copy}>"}
                writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers, warc_headers_dict=about))
    return str(path)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("crawl") / "toy.warc.gz", PAGES)


RECIPE = CurateRecipe(block_domains=("blocked.example",))


@pytest.fixture(scope="module")
def curated(crawl, tmp_path_factory):
    return curate([crawl], RECIPE, str(tmp_path_factory.mktemp("out") / "ds"))


def test_every_record_is_kept_or_refused_for_the_right_reason(curated):
    assert curated.rows_in == len(PAGES) == curated.rows + curated.rejected_rows
    refused = {row["url"]: row for row in curated.scan_rejected().collect().iter_rows(named=True)}
    assert set(refused) == set(REASONS)
    wrong = {url: refused[url]["reason"] for url, reason in REASONS.items() if refused[url]["reason"] != reason}
    assert not wrong
    assert refused["http://a.org/gone"]["detail"] == "404" and refused["http://blocked.example/x"]["detail"] == "blocked.example"
    assert "must be <=" in refused["http://a.org/again"]["detail"]
    kept = {row["url"]: row for row in curated.scan().collect().iter_rows(named=True)}
    assert set(kept) == {"http://a.org/en", "http://a.org/de", "http://a.org/mail"}
    assert kept["http://a.org/en"]["language"] == "en" and kept["http://a.org/de"]["language"] == "de"
    page = kept["http://a.org/en"]
    assert page["title"] == "Bridge" and page["host"] == "a.org" and page["captured_at"] == "2024-05-01T10:00:00Z" and page["source"] == "toy.warc.gz"
    assert page["text"] == "\n\n".join(ENGLISH) and page["signals"]["words"] > 100
    assert "jane@" not in kept["http://a.org/mail"]["text"] and "email@example.com" in kept["http://a.org/mail"]["text"]
    assert set(DOCUMENT_SCHEMA.names) < set(page)
    assert curated.counters["words"] == sum(row["signals"]["words"] for row in kept.values())


def test_parts_change_no_row(crawl, curated, tmp_path):
    split = curate([crawl], RECIPE.model_copy(update={"part_bytes": 400}), str(tmp_path / "split"))
    assert len(split.parts) > 1
    for one, other in ((curated.scan(), split.scan()), (curated.scan_rejected(), split.scan_rejected())):
        assert one.collect().equals(other.collect())
    again = curate([crawl], RECIPE, str(tmp_path / "again"))
    assert again.digest == curated.digest


def test_other_rules_without_reading_a_page_again(curated, tmp_path):
    loose = select([curated.uri], RECIPE.model_copy(update={"families": ("gopher_quality",)}), str(tmp_path / "loose"))
    urls = set(loose.scan(["url"]).collect()["url"])
    assert {"http://a.org/again", "http://a.org/curly"} < urls and loose.rows_in == curated.rows_in
    assert loose.reasons["read.http_status"] == 1
    same = select([loose.uri], RECIPE, str(tmp_path / "same"))
    assert same.scan().collect().sort("id").equals(curated.scan().collect().sort("id"))
    english = select([curated.uri], RECIPE.model_copy(update={"languages": ("en",)}), str(tmp_path / "english"))
    assert english.reasons["language.unwanted"] == 1


def test_why_shows_every_decision(curated, tmp_path):
    (fate,) = explain("http://a.org/curly", [curated.uri])
    assert not fate.kept and fate.reason == "c4.curly_bracket"
    broken = [decision for decision in fate.decisions if not decision.passed]
    assert broken[0].rule == fate.reason and broken[0].value == 1 and broken[0].bound == "<= 0"
    kept = explain(curated.scan(["id"]).collect()["id"][0], [curated.uri])[0]
    assert kept.kept and len(kept.decisions) > 20 and all(decision.passed for decision in kept.decisions)
    assert explain("http://a.org/gone", [curated.uri])[0].decisions == []
    with pytest.raises(UserError, match="no record"):
        explain("http://a.org/absent", [curated.uri])


def test_recipes_that_ship_are_valid_and_mistakes_are_named():
    for name in ("curate", "fineweb", "fineweb2", "gopher", "c4"):
        assert name in recipe_names()
        assert load_recipe(CurateRecipe, name).families
    assert load_recipe(CurateRecipe, "curate") == CurateRecipe()
    with pytest.raises(UserError, match="gopher_qualty"):
        load_recipe(CurateRecipe, {"families": ["gopher_qualty"]})
    with pytest.raises(UserError, match="gopher_quality.word"):
        load_recipe(CurateRecipe, {"thresholds": {"gopher_quality.word": {"min": 1}}})
    with pytest.raises(UserError, match="no such file"):
        curate(["absent.warc"], CurateRecipe(), "memory://nowhere")


def test_dates():
    assert captured_at("20080430204825") == "2008-04-30T20:48:25Z" and captured_at("2024-05-01T10:00:00.123Z") == "2024-05-01T10:00:00Z"
    assert captured_at("2019-03-01") == "2019-03-01T00:00:00Z" and captured_at("nonsense") == "" and captured_at("9999-99-99") == ""


def test_two_processes_give_the_same_bytes(crawl, tmp_path):
    from pipelines.cluster import open_cluster

    recipe = RECIPE.model_copy(update={"part_bytes": 700})
    serial = curate([crawl], recipe, str(tmp_path / "serial"))
    with open_cluster(2) as cluster:
        spread = curate([crawl], recipe, str(tmp_path / "spread"), cluster=cluster)
    assert serial.digest == spread.digest


def test_datatroves_filters_are_steps_of_a_recipe(tmp_path):
    crawl = _write(tmp_path / "c.warc.gz", PAGES)
    recipe = load_recipe(CurateRecipe, {**RECIPE.model_dump(), "datatrove": [{"filter": "RegexFilter", "params": {"regex_exp": "Bürgermeister"}}]})
    plain, dataset = curate([crawl], RECIPE, str(tmp_path / "plain")), curate([crawl], recipe, str(tmp_path / "out"))
    assert dataset.reasons == {**plain.reasons, "datatrove.RegexFilter": 1} and dataset.rows == plain.rows - 1
    with pytest.raises(UserError, match="datatrove has no filter Regex;"):
        load_recipe(CurateRecipe, {"datatrove": [{"filter": "Regex"}]})


class Headlines(BaseFilter):
    """A filter of a team's own that edits: the first line goes."""

    def filter(self, doc):
        doc.text = doc.text.partition("\n\n")[2]
        return True


def test_what_a_datatrove_filter_leaves_is_what_is_kept_and_the_next_one_sees(tmp_path):
    crawl = _write(tmp_path / "c.warc.gz", PAGES[:1])
    steps = [{"filter": f"{__name__}.Headlines"}, {"filter": "RegexFilter", "params": {"regex_exp": "The old bridge"}}]
    (before,) = curate([crawl], RECIPE, str(tmp_path / "plain")).scan().collect().to_dicts()
    (after,) = curate([crawl], load_recipe(CurateRecipe, {**RECIPE.model_dump(), "datatrove": steps}), str(tmp_path / "out")).scan().collect().to_dicts()
    assert before["text"].startswith("The old bridge") and after["text"] == before["text"].partition("\n\n")[2]
    (edit,) = after["edits"]
    assert edit["kind"] == "datatrove" and before["text"][: edit["start"]] + before["text"][edit["end"] :] in (after["text"], "")


def test_captures_that_datatroves_reader_passes_over_are_rows(tmp_path):
    pytest.importorskip("cchardet")
    pytest.importorskip("magic")
    crawl = _write(tmp_path / "c.warc.gz", [*PAGES[:2], ("http://a.org/i.png", b"\x89PNG\r\n\x1a\n" + bytes(99), "200 OK", "image/png")])
    recipe = load_recipe(CurateRecipe, {"families": [], "datatrove_reader": {"reader": "WarcReader", "html": True}})
    dataset = curate([crawl], recipe, str(tmp_path / "out"))
    assert dataset.rows == 2 and dataset.reasons == {"read.passed_over": 1}
    assert "http://a.org/i.png" in dataset.scan_rejected().collect()["detail"][0]


def test_datatroves_readers_are_inputs_of_a_recipe(tmp_path):
    lines = [json.dumps({"text": "\n\n".join(ENGLISH), "id": f"r{n}", "metadata": {"url": f"http://a.org/{n}"}}) for n in range(3)]
    (tmp_path / "docs.weird").write_text("\n".join([lines[0], "{broken", '{"text": ""}', *lines[1:]]))
    recipe = load_recipe(CurateRecipe, {"datatrove_reader": {"reader": "JsonlReader", "params": {"compression": None}}})
    dataset = curate([str(tmp_path / "docs.weird")], recipe, str(tmp_path / "out"))
    assert dataset.reasons == {"read.broken": 1, "read.empty": 1} and dataset.rows == 3
    assert dataset.scan(["url"]).collect()["url"].to_list() == [f"http://a.org/{n}" for n in range(3)]
    assert curate([str(tmp_path / "docs.weird")], recipe, str(tmp_path / "again")).digest == dataset.digest
    for wrong, message in (({"reader": "Jsonl"}, "no reader of files Jsonl; known: CSVReader"), ({"reader": "CSVReader", "params": {"limit": 3}}, "no limit here")):
        with pytest.raises(UserError, match=message):
            load_recipe(CurateRecipe, {"datatrove_reader": wrong})


def test_records_that_are_not_whole_are_marked_and_counted(tmp_path):
    whole = open(_write(tmp_path / "c.warc.gz", PAGES[:2]), "rb").read()
    (tmp_path / "cut.warc.gz").write_bytes(whole[:-40])
    dataset = curate([str(tmp_path / "cut.warc.gz")], RECIPE, str(tmp_path / "out"))
    assert dataset.counters["damage_cut"] == 1 and dataset.rows_in == 2
