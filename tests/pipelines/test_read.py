"""Reading: every record once, every loss named, whatever the file is like and wherever parts are cut."""

import bz2
import collections
import gzip
import io
import json
import random
import warnings
import zlib

import brotli
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fastwarc.warc import ArchiveIterator, WarcRecordType
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipelines.errors import UserError
from pipelines.read import plan_parts, records
from pipelines.read.payload import TooLarge, decode_payload, inflate, unchunk

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


def _read(data, start=None, end=None, name="x.warc.gz", **limits):
    """Records of one file, or of a part of it, out of fsspec's own memory."""
    uri = f"memory://read/{name}"
    fsspec.filesystem("memory").pipe(uri, bytes(data))
    return list(records({"pieces": [{"uri": uri} if start is None else {"uri": uri, "start": start, "end": end}]}, **limits))


def _split(data, part_bytes, name):
    """(every part's records, one after the other; the number of parts)."""
    uri = f"memory://read/{name}"
    fsspec.filesystem("memory").pipe(uri, bytes(data))
    parts = plan_parts([uri], part_bytes)
    return [record for part in parts for record in records(part)], len(parts)


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
    assert all(record.reason or record.body for record in got) and not any(record.damage for record in got[: len(complete)])
    assert all(record.damage == "cut" or record.reason in ("read.broken", "read.no_record") for record in got[len(complete) :]) and len(got) <= len(complete) + 1


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


def test_warc_0_18_as_clueweb09_has_it():
    """Line feeds alone, lengths that leave them out or count too many, a date of the 65th, an empty payload type, a type in capitals."""
    def record(kind, content, wrong, *more):
        head = ["WARC/0.18", f"WARC-Type: {kind}", "WARC-Date: 2009-03-65T08:43:19-0800", *more, f"Content-Length: {len(content) + wrong}"]
        return "\n".join(head).encode() + b"\n\n" + content + b"\n\n"

    def page(n):
        return b"HTTP/1.1 200 OK\nContent-Type: text/html\nConnection: close\n\n" + HTML + b"\n" * n

    about = record("warcinfo", b"software: Nutch 1.0-dev\nformat: WARC file version 0.18\n", 0)
    wrongs = (0, -20, 7, 0, 300)
    members = [about] + [
        record("Response" if n == 3 else "response", page(n), wrong, f"WARC-Target-URI: http://a.org/{n}", f"WARC-TREC-ID: clueweb09-en0000-00-0000{n}", "WARC-Identified-Payload-Type: ")
        for n, wrong in enumerate(wrongs)
    ]
    for data in (b"".join(members), gzip.compress(b"".join(members)), b"".join(map(gzip.compress, members))):
        got = _read(data, name="clueweb.warc")
        assert [record.url for record in got] == [f"http://a.org/{n}" for n in range(5)] and all(record.body.startswith(HTML) and not record.reason for record in got)
        assert [bool(record.damage) for record in got] == [bool(wrong) for wrong in wrongs]
        _same(_split(data, 400, "clueweb.warc")[0], got)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_chunked_and_encoded_bodies_in_records(encoding):
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstandard.compress}[encoding](HTML * 20)
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(packed[at : at + 9]), packed[at : at + 9]) for at in range(0, len(packed), 9)) + b"0\r\n\r\n"
    data = _warc(
        lambda w: _response(w, "http://a.org/plain", packed, **{"Content-Encoding": encoding}),
        lambda w: _response(w, "http://a.org/chunked", chunked, **{"Content-Encoding": encoding, "Transfer-Encoding": "chunked"}),
        lambda w: _response(w, "http://a.org/cut", chunked[: len(chunked) // 2], **{"Content-Encoding": encoding, "Transfer-Encoding": "chunked"}),
    )
    whole, joined, cut = _read(data)
    assert whole.body == joined.body == HTML * 20 and (HTML * 20).startswith(cut.body)


def test_a_record_of_no_known_type_is_a_row():
    data = _warc(lambda w: w.create_warc_record("http://a.org/", "resource", payload=io.BytesIO(HTML), warc_content_type="text/html"), compressed=False)
    for wrong, detail in ((b"WARC-Type: novelty", "novelty"), (b"WARC-Kind: resource", "no WARC-Type")):
        (record,) = _read(data.replace(b"WARC-Type: resource", wrong), name="u.warc")
        assert (record.reason, record.detail, record.url) == ("read.unknown_type", detail, "http://a.org/")


def test_arc_and_wet(shared_data):
    arc = [record for part in plan_parts([str(shared_data / "crawl/warc/jwat-small_BNF.arc")]) for record in records(part)]
    assert [record.reason for record in arc].count("") == 3 and all(record.offset >= 0 and record.length > 0 for record in arc)
    assert arc[0].id == [record for part in plan_parts([str(shared_data / "crawl/warc/jwat-small_BNF.arc")]) for record in records(part)][0].id
    wet = str(shared_data / "crawl/warc/commoncrawl-CC-MAIN-2016-50-excerpt.warc.wet.gz")
    assert sum(bool(record.text) for part in plan_parts([wet]) for record in records(part)) == 43


def _plain_records(count, seed):
    """Plain WARC bytes whose pages hold whole archives: records inside records, gzipped and not."""
    draw = random.Random(seed)
    inner = _warc(*_pages(3), compressed=False)
    makes = []
    for n in range(count):
        body = b"<html>" + draw.choice([inner, gzip.compress(inner), b"", bytes(draw.randbytes(draw.randrange(400)))]) * draw.randrange(4)
        makes.append(lambda writer, n=n, body=body: _response(writer, f"http://outer.org/{n}", body))
    return makes


def _same(one, other):
    def told(found):
        return [(record.id, record.offset, record.length, record.url, record.body, record.text, record.reason, record.damage) for record in found]

    assert told(one) == told(other)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 25), st.integers(1, 6000), st.integers(0, 10**6), st.sampled_from(["", "gzip", "zstd", "lz4"]))
def test_any_part_size_gives_the_same_rows_even_of_pages_that_hold_archives(count, part_bytes, seed, codec):
    makes = _plain_records(count, seed)
    members = [_warc(make, compressed=False) for make in makes]
    pack = {"": bytes, "gzip": gzip.compress, "zstd": zstandard.compress, "lz4": lambda data: _lz4(data)}[codec]
    data = b"".join(pack(member) for member in members)
    whole = _read(data, name="s.warc")
    assert [record.url for record in whole] == [f"http://outer.org/{n}" for n in range(count)]
    parts, number = _split(data, part_bytes, "s.warc")
    _same(parts, whole)
    assert number > 1 or len(data) < 2 * part_bytes or codec == "gzip" or count < 3


def _lz4(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def test_archives_stored_verbatim_inside_a_gzip_member_are_no_boundary():
    inner = b"".join(_warc(make) for make in _pages(40))
    assert len(inner) < 65_000
    makes = [lambda w, n=n: _response(w, f"http://outer.org/{n}", b"<html>" + inner) for n in range(8)]
    data = b"".join(gzip.compress(_warc(make, compressed=False), compresslevel=0) for make in makes)  # level 0 copies: the members of the inner file show
    for part_bytes in (3000, 10_000, 40_000):
        parts, number = _split(data, part_bytes, "v.warc.gz")
        assert number > 1
        _same(parts, _read(data, name="v.warc.gz"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["{}", '{"text": "a"}', '{"text": "\\u00e4", "url": "u"}', "", "  ", "[1]", "{broken", '{"text": "' + "x" * 300 + '"}']), max_size=40),
       st.integers(1, 200), st.booleans())
def test_jsonl_parts_of_any_size(lines, part_bytes, last_end):
    data = "\n".join(lines).encode() + (b"\n" if last_end else b"")
    _same(_split(data, part_bytes, "a.jsonl")[0], _read(data, name="a.jsonl"))


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2", "lz4"])
@pytest.mark.parametrize("fault", ["cut", "flipped", "padded", "two members"])
def test_a_compressed_file_is_read_to_where_it_breaks(codec, fault):
    """One stream over many documents, as exporters write it: what lies before the fault is read, less than a block of the codec's excepted."""
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdefghijklmnop ", k=500)) for _ in range(4500)]
    pack = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor(write_checksum=True).compress, "bz2": bz2.compress, "lz4": _lz4}[codec]
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    archive = _warc(*[lambda w, text=text: _response(w, "http://a.org/", b"<html>" + text.encode()) for text in texts[:2500]], compressed=False)
    for name, packed, bodies in (
        ("a.jsonl", pack(b"".join(lines[:3000])) + pack(b"".join(lines[3000:])) if fault == "two members" else pack(b"".join(lines)), texts),
        ("a.warc", pack(archive), [f"<html>{text}" for text in texts[:2500]]),
    ):
        data = bytearray(packed)
        if fault == "flipped":
            for at in range(len(data) // 2, len(data) // 2 + 30):
                data[at] ^= 0x5A
        whole = {"cut": data[: len(data) // 2], "padded": data + bytes(100) if codec in ("gzip", "bz2") else data}.get(fault, data)
        got = _read(bytes(whole), name=name)
        good = [record for record in got if not record.reason and not record.damage]
        read = [record.text if record.text is not None else record.body.decode("utf-8", "replace") for record in good]
        if fault in ("cut", "flipped"):
            slack = {"bz2": 1_000_000, "gzip": 40_000}.get(codec, 1 << 18) // 500  # bytes of the block that cannot be had
            same = next((place for place, (mine, true) in enumerate(zip(read, bodies, strict=False)) if mine != true), len(read))
            assert same >= len(bodies) // 2 - slack - 40, (codec, name)
            assert (fault, codec) == ("flipped", "lz4") or any(record.reason or record.damage for record in got), "and, where there is a checksum, told"
        else:
            assert read == bodies and len(got) == len(good)


def test_a_line_past_the_limit_is_one_loss_and_moves_no_offset(monkeypatch):
    monkeypatch.setattr("pipelines.read.tables.LONGEST_LINE", 1000)
    data = b'{"text": "a"}\n' + b"x" * 3_000_000 + b'\n{"text": "b"}\n'
    got = _read(data, name="a.jsonl")
    assert [(record.reason, record.offset) for record in got] == [("", 0), ("read.too_large", 14), ("", 3_000_015)]
    _same(_split(data, 1 << 16, "a.jsonl")[0], got)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 5), st.sampled_from(["", "gzip", "one-gzip"]))
def test_lying_lengths_lose_no_page(seed, lies, codec):
    """Every length may be too small or too large: the pages are all there, marked."""
    draw = random.Random(seed)
    members = [_warc(make, compressed=False) for make in _pages(12)]
    chosen = draw.sample(range(12), lies)
    for n in chosen:
        head, _, rest = members[n].partition(b"Content-Length: ")
        number, _, rest = rest.partition(b"\r\n")
        wrong = max(int(number) + draw.choice([-40, -7, 5, 300, 10**9, 10**15]), 3)
        members[n] = head + b"Content-Length: " + str(wrong).encode() + b"\r\n" + rest
    data = {"": b"".join, "gzip": lambda parts: b"".join(map(gzip.compress, parts)), "one-gzip": lambda parts: gzip.compress(b"".join(parts))}[codec](members)
    got = _read(data, name="l.warc")
    far = [n for n in chosen if b"000000000" in members[n][:400]]
    if codec != "one-gzip" or not far:  # one stream and an absurd length: only reading on would tell, and then it is too late to look back
        assert [record.url for record in got if not record.reason] == [f"http://a.org/{n}" for n in range(12)]
        assert {n for n, record in enumerate(got) if record.damage} == set(chosen)
        assert all(HTML in record.body for record in got)


def test_what_belongs_to_no_record_is_counted():
    members = [_warc(make, compressed=False) for make in _pages(4)]
    got = _read(b"garbage before\n" + members[0] + members[1] + members[2], name="g.warc")
    assert [record.reason for record in got] == ["read.no_record", "", "", ""] and got[0].detail.startswith("15 bytes")
    endless = b"WARC/1.0\r\nWARC-Type: response\r\nX: " + b"x" * (1 << 21)
    got = _read(members[0] + endless + b"\n" + members[1], name="h.warc")
    assert [record.reason for record in got] == ["", "read.bad_header", ""]


def _bombs():
    zeros = bytes(1 << 20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join([deflate.compress(zeros) for _ in range(64)]) + deflate.flush()
    return {
        "gzip": packed, "deflate": zlib.compress(zeros * 64, 9), "br": brotli.compress(zeros * 64, quality=5),
        "zstd": zstandard.compress(zeros * 64), "gzip, gzip": gzip.compress(packed), "gzip,gzip,gzip,gzip,gzip,gzip": gzip.compress(HTML),
    }  # fmt: skip


def test_bombs_are_too_large_and_memory_stays_bounded():
    import resource

    files = []
    for encoding, packed in _bombs().items():
        headers = {"Content-Encoding": encoding}
        files.append(_warc(lambda w, packed=packed, headers=headers: _response(w, "http://a.org/bomb", packed, **headers)))
    chunked = b"".join(b"%x\r\n" % 65536 + bytes(65536) + b"\r\n" for _ in range(400)) + b"0\r\n\r\n"
    files.append(_warc(lambda w: _response(w, "http://a.org/bomb", chunked, **{"Transfer-Encoding": "chunked"})))
    files.append(gzip.compress(_warc(lambda w: _response(w, "http://a.org/bomb", bytes(80 << 20)), compressed=False)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in files:
        got = _read(data, name="b.warc")
        assert [record.reason for record in got] == ["read.too_large"], got[0].detail
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_truncated_captures_are_marked_and_continuations_named():
    data = _warc(
        lambda w: w.create_warc_record("http://a.org/", "resource", payload=io.BytesIO(HTML), warc_content_type="text/html", warc_headers_dict={"WARC-Truncated": "length"}),
        lambda w: w.create_warc_record("http://a.org/", "continuation", payload=io.BytesIO(b"more"), warc_headers_dict={"WARC-Segment-Number": "2"}),
    )
    first, second = _read(data)
    assert (first.reason, first.damage) == ("", "truncated:length") and second.reason == "read.continuation" and "segment 2" in second.detail


def test_a_zstd_dictionary_as_the_proposal_has_it():
    samples = [_warc(make, compressed=False) for make in _pages(200)]
    dictionary = zstandard.train_dictionary(4096, samples)
    packer = zstandard.ZstdCompressor(dict_data=dictionary)
    content = zstandard.compress(dictionary.as_bytes())
    data = b"\x5d\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content + b"".join(packer.compress(sample) for sample in samples[:30])
    got = _read(data, name="d.warc.zst")
    assert [record.url for record in got] == [f"http://a.org/{n}" for n in range(30)] and all(record.offset > 0 and record.length > 0 for record in got)
    _same(_split(data, 2000, "d.warc.zst")[0], got)


def _warcio_counts(path):
    from warcio.archiveiterator import ArchiveIterator as Iterator

    with open(path, "rb") as file, warnings.catch_warnings():
        return collections.Counter(record.rec_type for record in Iterator(file, arc2warc=True))


def _fastwarc_counts(path):
    with open(path, "rb") as file:
        return collections.Counter(str(record.record_type).rpartition(".")[2] for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False))


def test_record_counts_of_real_archives_are_warcios_and_fastwarcs(shared_data):
    files = [path for folder in ("warc", "docs-crawl") for path in sorted((shared_data / "crawl" / folder).rglob("*")) if ".cdx" not in path.name and ".paths" not in path.name]
    seen = 0
    for path in filter(lambda path: path.is_file(), files):
        tally = collections.Counter()
        got = [record for part in plan_parts([str(path)], 1 << 18) for record in records(part, tally=tally)]
        assert tally == _warcio_counts(path), path.name
        if ".arc" not in path.name:
            assert tally == _fastwarc_counts(path), path.name
        assert len(got) == sum(count for kind, count in tally.items() if kind not in ("warcinfo", "request", "metadata")), path.name
        assert not [record for record in got if record.reason in ("read.broken", "read.no_record", "read.bad_header")], path.name
        seen += 1
    assert seen >= 45
