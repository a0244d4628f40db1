"""Reading: every record once, every loss named, whatever the file is like and wherever parts are cut."""

import gzip
import io
import json
import zlib

import brotli
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipelines.errors import UserError
from pipelines.read import plan_parts, records
from pipelines.read.payload import TooLarge, decode_payload, inflate, unchunk
from pipelines.read.warc import read_warc

HTML = b"<html><body><p>hello</p></body></html>"


def _response(writer, url, body, status="200 OK", **headers):
    fields = [("Content-Type", headers.pop("type", "text/html")), *headers.items()]
    http = StatusAndHeaders(status, fields, protocol="HTTP/1.1")
    return writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=http)


def _warc(*records, compressed=True):
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=compressed)
    for make in records:
        writer.write_record(make(writer))
    return file.getvalue()


def _pages(count):
    return [lambda writer, n=n: _response(writer, f"http://a.org/{n}", HTML + str(n).encode() * (n % 50)) for n in range(count)]


def _read(data, start=0, end=None, **limits):
    return list(read_warc(io.BytesIO(data), "x.warc.gz", start, end, **limits))


def test_reasons_and_fields():
    data = _warc(
        lambda w: _response(w, "http://a.org/", HTML),
        lambda w: _response(w, "http://a.org/gone", b"no", status="404 Not Found"),
        lambda w: _response(w, "http://a.org/i.png", b"\x89PNG", type="image/png"),
        lambda w: _response(w, "http://a.org/big", b"<html>" + b"x" * 5000),
        lambda w: _response(w, "http://a.org/none", b"  "),
        lambda w: w.create_revisit_record("http://a.org/", "sha1:X", "http://a.org/", "2020-01-01T00:00:00Z"),
        lambda w: w.create_warc_record("http://a.org/t", "conversion", payload=io.BytesIO("grüße".encode()), warc_content_type="text/plain"),
        lambda w: w.create_warc_record("http://a.org/r", "resource", payload=io.BytesIO(HTML), warc_content_type="text/html"),
        lambda w: w.create_warc_record("http://a.org/q", "request", payload=io.BytesIO(b"GET / HTTP/1.1\r\n\r\n")),
    )
    got = _read(data, max_body=4000)
    assert [record.reason for record in got] == ["", "read.http_status", "read.not_html", "read.too_large", "read.empty", "read.revisit", "", ""]
    assert got[0].body == HTML and got[0].url == "http://a.org/" and got[0].status == 200 and got[0].date and len(got[0].id) == 32
    assert got[1].detail == "404" and got[6].text == "grüße"
    for record in got:  # offset and length say where the record lies
        assert gzip.decompress(data[record.offset : record.offset + record.length]).startswith(b"WARC/")
    assert len({record.id for record in got}) == len(got)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 20_000), max_size=6), st.integers(1, 40))
def test_parts_cut_anywhere_read_every_record_once(cuts, count):
    data = _warc(*_pages(count))
    edges = sorted({0, len(data), *[cut for cut in cuts if cut < len(data)]})
    parts = [record.id for start, end in zip(edges, edges[1:], strict=False) for record in _read(data, start, end)]
    assert parts == [record.id for record in _read(data)] and len(parts) == count


def test_reading_goes_on_behind_a_broken_member():
    whole = _warc(*_pages(30))
    places = [record.offset for record in _read(whole)]
    broken = bytearray(whole)
    for position in range(places[10] + 30, places[10] + 80):
        broken[position] ^= 0xA5
    got = _read(bytes(broken))
    assert [record.reason for record in got if record.reason] == ["read.broken"]
    urls = [record.url for record in got if not record.reason]
    assert "http://a.org/9" in urls and "http://a.org/29" in urls and len(urls) >= 28


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3000))
def test_a_truncated_file_gives_what_comes_before(cut):
    whole = _warc(*_pages(20))
    got = _read(whole[:cut])
    complete = [record for record in _read(whole) if record.offset + record.length <= cut]
    assert [record.id for record in got][: len(complete)] == [record.id for record in complete]
    assert all(record.reason or record.body for record in got)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw-deflate", "br", "zstd", "gzip, br", "identity", "none-of-these"])
def test_content_encodings(encoding):
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(HTML), "deflate": zlib.compress(HTML), "raw-deflate": raw.compress(HTML) + raw.flush(), "br": brotli.compress(HTML),
        "zstd": pa.compress(HTML, codec="zstd", asbytes=True), "gzip, br": brotli.compress(gzip.compress(HTML)),
    }.get(encoding, HTML)  # fmt: skip
    assert decode_payload(packed, "", encoding.removeprefix("raw-"), 1000) == HTML


def test_liars_and_bombs():
    assert inflate(HTML, "gzip", 1000) == HTML and inflate(HTML, "br", 1000) == HTML and inflate(HTML, "deflate", 1000) == HTML
    assert inflate(gzip.compress(HTML * 50)[:60], "gzip", 10_000), "a cut body gives what was readable"
    for encoding, packed in (("gzip", gzip.compress(bytes(10**7))), ("br", brotli.compress(bytes(10**7))), ("zstd", pa.compress(bytes(10**7), "zstd", asbytes=True))):
        with pytest.raises(TooLarge):
            inflate(packed, encoding, 10**6)
    assert unchunk(b"5\r\nhello\r\n3;x=y\r\n wo\r\n0\r\n\r\n") == b"hello wo"
    assert unchunk(b"not chunked") == b"not chunked"


def test_tables_pages_and_their_losses(tmp_path):
    rows = [{"text": "one", "url": "http://a.org/1", "id": "r1"}, {"html": "<p>two</p>"}, {"text": ""}]
    lines = "\n".join([json.dumps(rows[0]), "{broken", json.dumps(rows[1]), "[1]", json.dumps(rows[2])])
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.jsonl.zst").write_bytes(pa.compress(lines.encode(), "zstd", asbytes=True))
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        got = [record for part in plan_parts([str(tmp_path / name)]) for record in records(part)]
        assert [record.reason for record in got] == ["", "read.bad_json", "", "read.bad_json", "read.empty"], name
        assert got[0].text == "one" and got[0].url == "http://a.org/1" and got[2].body == b"<p>two</p>"
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in ("text", "url", "id", "html")])), tmp_path / "d.parquet")
    (tmp_path / "e.html").write_bytes(HTML)
    (tmp_path / "f.txt").write_text("plain")
    (tmp_path / "g.parquet").write_bytes(b"PAR1 no")
    got = [record for part in plan_parts([str(tmp_path / name) for name in ("d.parquet", "e.html", "f.txt", "g.parquet")]) for record in records(part)]
    assert [record.reason for record in got] == ["", "", "read.empty", "", "", "read.broken"]


def test_a_big_parquet_file_is_split_by_row_groups(tmp_path):
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(50)]}), tmp_path / "a.parquet", row_group_size=20)
    parts = plan_parts([str(tmp_path / "a.parquet")], part_bytes=10)
    got = [record for part in parts for record in records(part)]
    assert len(parts) == 3 and [record.text for record in got] == [f"text {n}" for n in range(50)]
    assert len({record.id for record in got}) == 50


def test_plans_depend_on_bytes_and_name_what_is_missing(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(_warc(*_pages(60)))
    size = (tmp_path / "a.warc.gz").stat().st_size
    parts = plan_parts([str(tmp_path / "a.warc.gz")], part_bytes=size // 3 - 1)
    assert len(parts) == 4 and parts[0]["pieces"][0]["start"] == 0 and parts[-1]["pieces"][0]["end"] == size
    assert len([record for part in parts for record in records(part)]) == 60
    with pytest.raises(UserError, match="no such file"):
        plan_parts([str(tmp_path / "absent.warc")])
    with pytest.raises(UserError, match="not a crawl file"):
        plan_parts([str(tmp_path / "a.exe")])


def test_real_malformed_files_never_crash(shared_data):
    outcome = {}
    for path in sorted((shared_data / "crawl/malformed").rglob("*")):
        if path.is_file() and path.suffix != ".bad":
            outcome[path.name] = [record.reason for part in plan_parts([str(path)]) for record in records(part)]
    assert len(outcome) >= 20
    assert outcome["clipped.warc.gz"] == [""] and outcome["aut-badexample.arc.gz"] == ["read.broken"]
    assert outcome["unparsable-date.warc.gz"] == ["read.http_status"] and outcome["warcfile.warc.lz4"].count("") == 16
    assert "read.revisit" in outcome["example-bad-length.warc"] and "" in outcome["commoncrawl-2016-lf-only.warc"]


def test_arc_and_wet(shared_data):
    arc = [record for part in plan_parts([str(shared_data / "crawl/warc/jwat-small_BNF.arc")]) for record in records(part)]
    assert [record.reason for record in arc].count("") == 3 and all(record.offset >= 0 and record.length > 0 for record in arc)
    assert arc[0].id == [record for part in plan_parts([str(shared_data / "crawl/warc/jwat-small_BNF.arc")]) for record in records(part)][0].id
    wet = str(shared_data / "crawl/warc/commoncrawl-CC-MAIN-2016-50-excerpt.warc.wet.gz")
    assert sum(bool(record.text) for part in plan_parts([wet]) for record in records(part)) == 43
