"""Crawls on the web and in object stores: the same rows as from a disk, or one line that says why not; never a shorter file."""

import collections
import gzip
import io
import json
import logging
import os
import random
import ssl
import subprocess
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.registry import _registry as fsspec_registry
from loopback import certificate, s3_server, web_server
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipelines.crawl.sources import resolve
from pipelines.curate import CurateRecipe, curate
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.read import plan_parts, records
from pipelines.storage import failures

SENTENCE = "The quick brown fox of page %d jumps over the lazy dog that sleeps with a cat in the warm sun of the late afternoon. "


def _members(count):
    for n in range(count):
        file = io.BytesIO()
        http = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
        body = b"<html><p>" + (SENTENCE % n).encode() * (3 + n % 7) + random.Random(n).randbytes(900).hex(" ", 3).encode() + b"</p></html>"
        writer = WARCWriter(file, gzip=False)
        writer.write_record(writer.create_warc_record(f"http://a.org/{n}", "response", payload=io.BytesIO(body), http_headers=http))
        yield file.getvalue()


@pytest.fixture(scope="module")
def crawl():
    """Files of every kind, by name; a hundred and fifty pages in an archive."""
    members = list(_members(150))
    rows = [{"text": SENTENCE % n * 3, "url": f"http://b.org/{n}"} for n in range(60)]
    lines = "\n".join(map(json.dumps, rows)).encode()
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=20)
    return {
        "a.warc.gz": b"".join(map(gzip.compress, members)), "b.warc.zst": b"".join(map(zstandard.compress, members)), "c.warc": b"".join(members),
        "d.jsonl": lines, "e.jsonl.gz": gzip.compress(lines), "f.jsonl.zst": zstandard.compress(lines), "g.parquet": table.getvalue(),
        "h.html": b"<html><p>one page</p></html>", "i.txt": b"a text",
    }  # fmt: skip


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(crawl, pem):
    with web_server(pem) as server:
        server.files.update(crawl)
        yield server


@pytest.fixture
def web(server, pem, monkeypatch):
    """The crawl on an HTTPS server whose certificate is trusted by an fsspec option, as a user would name it."""
    monkeypatch.setattr(failures, "PAUSE", 0.01)
    monkeypatch.setitem(fsspec.config.conf, "https", {"ssl": ssl.create_default_context(cafile=str(pem))})
    server.asked.clear()
    server.faults.clear()
    return server


@pytest.fixture(scope="module")
def s3(crawl):
    """A store's address, and a client with keys; its bucket "crawl" holds the crawl below day/1/."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server() as url:
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret")
        client.create_bucket(Bucket="crawl")
        for name, data in crawl.items():
            client.put_object(Bucket="crawl", Key=f"day/1/{name}", Body=data)
        yield url, client


@pytest.fixture
def bucket(s3, monkeypatch, tmp_path):
    """The client; endpoint and keys are in the environment."""
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    told = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": s3[0], "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in (told | {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_CONFIG_FILE": str(tmp_path / "none")}).items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    yield s3[1]
    S3FileSystem.clear_instance_cache()


def _told(uri, part_bytes=1 << 30):
    parts = plan_parts([uri], part_bytes)
    return [(row.offset, row.url.rpartition("/")[2], row.body, row.text, row.reason, row.damage) for part in parts for row in records(part)], len(parts)


def _on_disk(crawl, folder, name):
    (folder / name).write_bytes(crawl[name])
    return _told(str(folder / name))[0]


NAMES = ["a.warc.gz", "b.warc.zst", "c.warc", "d.jsonl", "e.jsonl.gz", "f.jsonl.zst", "g.parquet", "h.html", "i.txt"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_over_https_and_s3_is_what_it_is_on_disk(web, bucket, crawl, tmp_path, name):
    expected = _on_disk(crawl, tmp_path, name)
    assert len(expected) == {"a": 150, "b": 150, "c": 150, "h": 1, "i": 1}.get(name[0], 60) and not any(row[4] for row in expected)
    modes = ("ranges", "whole", "unsized") if name in ("a.warc.gz", "g.parquet") else ("ranges",)
    for uri in (*(f"{web.url}/{mode}/{name}" for mode in modes), f"s3://crawl/day/1/{name}"):
        got, _ = _told(uri)
        assert [row[:1] + row[2:] for row in got] == [row[:1] + row[2:] for row in expected], uri
        split, parts = _told(uri, len(crawl[name]) // 3)
        assert split == got
        cannot = uri.startswith(web.url) and "ranges" not in uri  # what is only sent whole is one part
        assert parts == 1 if cannot or name[:1] in "efhi" else parts >= 3, uri


@pytest.mark.parametrize("mode", ["drops", "drops-whole", "busy", "stingy", "nohead", "moved", "encoded"])
def test_faults_that_pass_cost_no_row(web, crawl, tmp_path, mode):
    assert _told(f"{web.url}/{mode}/a.warc.gz")[0] == _on_disk(crawl, tmp_path, "a.warc.gz")
    assert mode not in ("drops", "busy") or sum(web.asked.values()) > 3


@pytest.mark.parametrize(("mode", "line"), [
    ("gone", "no such file$"), ("secret", r"access denied \(Forbidden\).*netrc"), ("down", "HTTP 503.*run the same command again"),
    ("breaks", "Not enough data.*run the same command again"), ("breaks-whole", "Not enough data"), ("changing", "changed while it was read"),
])  # fmt: skip
def test_faults_that_stay_are_one_line_and_no_rows(web, mode, line):
    uri = f"{web.url}/{mode}/a.warc.gz"
    with pytest.raises(UserError, match=f"^{uri}: .*{line}") as raised:
        _told(uri)
    assert "\n" not in str(raised.value)
    assert max(web.asked.values()) <= failures.ATTEMPTS + 2, "bounded"


@pytest.mark.parametrize("name", ["d.jsonl", "e.jsonl.gz", "f.jsonl.zst", "g.parquet", "b.warc.zst"])
def test_a_connection_that_breaks_is_no_damage_of_the_file(web, name):
    """What reads through arrow, zstandard or zlib must not take a lost connection for a file that ends."""
    with pytest.raises(UserError, match="Not enough data"):
        _told(f"{web.url}/breaks/{name}")


def test_a_server_nobody_vouches_for_or_reaches_is_one_line(web, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "https", {})
    with pytest.raises(UserError, match="certificate is not trusted.*SSL_CERT_FILE"):
        _told(f"{web.url}/ranges/a.warc.gz")
    with pytest.raises(UserError, match="Connect call failed"):
        _told("https://127.0.0.1:9/a.warc.gz")


def test_the_command_trusts_what_the_environment_names(web, pem, tmp_path):
    command = [sys.executable, "-m", "flows.cli", "curate", f"{web.url}/folder/", f"{web.url}/ranges/h.html", "--out", str(tmp_path / "out"), "--workers", "0", "--json"]
    run = subprocess.run([*command, "families=[]"], env={**os.environ, "SSL_CERT_FILE": str(pem)}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)
    assert counts["rows_in"] == counts["rows"] + counts["rejected_rows"] == 3 * 150 + 4 * 60 + 3


def test_pages_of_links_and_addresses_with_queries(web):
    listed = resolve(f"{web.url}/folder/", "unused")
    assert [uri.rpartition("/")[2] for uri in listed] == NAMES
    assert resolve(f"{web.url}/folder/*.warc*", "unused") == [uri for uri in listed if ".warc" in uri]
    signed = f"{web.url}/ranges/h.html?signature=a%2Fb"
    assert resolve(signed, "unused") == [signed] and _told(signed)[0][0][2] == b"<html><p>one page</p></html>"


def test_keys_public_objects_and_refusals(bucket, crawl, monkeypatch):
    from s3fs import S3FileSystem

    bucket.put_object(Bucket="crawl", Key="open/h.html", Body=crawl["h.html"], ACL="public-read")
    for uri, line in (("s3://crawl/day/2.warc.gz", "no such file"), ("s3://crawk/a.warc.gz", "bucket does not exist"), ("s3://crawl/day", "not a crawl file")):
        with pytest.raises(UserError, match=f"^{uri}: .*{line}"):
            plan_parts([uri])
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="access denied.*AWS_ACCESS_KEY_ID.*FSSPEC_S3_ANON"):
        plan_parts(["s3://crawl/open/h.html"])
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": "true"})  # what FSSPEC_S3_ANON=true sets
    assert len(_told("s3://crawl/open/h.html")[0]) == 1
    with pytest.raises(UserError, match="access denied"):
        plan_parts(["s3://crawl/day/1/h.html"])


def test_listing_a_prefix_with_globs(bucket):
    bucket.put_object(Bucket="crawl", Key="day/2/deep/a.warc.gz", Body=b"x")
    bucket.put_object(Bucket="crawl", Key="day/2/notes.md", Body=b"x")
    assert resolve("s3://crawl/day/1", "unused") == [f"s3://crawl/day/1/{name}" for name in NAMES]
    assert resolve("s3://crawl/day/*/*.warc*", "unused") == [f"s3://crawl/day/1/{name}" for name in NAMES[:3]]
    assert resolve("s3://crawl/day/**/a.warc.gz", "unused") == ["s3://crawl/day/1/a.warc.gz", "s3://crawl/day/2/deep/a.warc.gz"]
    for source, line in (("s3://crawl/night/*.warc.gz", "no file matches"), ("s3://crawl/night/", "no such file"), ("s3://crawl/day/2/notes.md", "known kind")):
        with pytest.raises(UserError, match=line):
            resolve(source, "unused")


@pytest.mark.parametrize("mode", ["drops", "busy"])
def test_s3_through_the_same_faults(web, pem, bucket, crawl, tmp_path, monkeypatch, mode):
    """S3's GET is a plain one, so the faulty server stands in for the store."""
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(pem))
    S3FileSystem.clear_instance_cache()
    assert _told(f"s3://{mode}/a.warc.gz")[0] == _on_disk(crawl, tmp_path, "a.warc.gz")


def test_s3_that_breaks_is_one_line(web, pem, bucket, monkeypatch):
    from s3fs import S3FileSystem

    monkeypatch.setattr(S3FileSystem, "retries", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(pem))
    S3FileSystem.clear_instance_cache()
    for mode in ("breaks", "gone"):
        with pytest.raises(UserError, match=f"^s3://{mode}/a.warc.gz: "):
            _told(f"s3://{mode}/a.warc.gz")


def test_datasets_in_a_bucket_are_the_same_bytes(bucket, crawl, tmp_path):
    recipe = CurateRecipe(families=("gopher_quality",), thresholds={"gopher_quality.words": {"min": 400}}, part_bytes=120_000)
    (tmp_path / "a.warc.gz").write_bytes(crawl["a.warc.gz"])
    here = curate([str(tmp_path / "a.warc.gz")], recipe, str(tmp_path / "out"))
    there = curate(["s3://crawl/day/1/a.warc.gz"], recipe, "s3://crawl/out")
    assert there.digest == here.digest and here.rows > 20 and here.rejected_rows > 5 and len(here.parts) > 1
    assert there.scan(["id", "text"]).collect().equals(here.scan(["id", "text"]).collect())
    assert there.scan_rejected().collect().height == here.rejected_rows
    assert curate(["s3://crawl/day/1/a.warc.gz"], recipe, "s3://crawl/out").digest == here.digest, "complete: nothing runs"
    bucket.delete_object(Bucket="crawl", Key="out/dataset.json")
    bucket.delete_object(Bucket="crawl", Key="out/receipts/part-00001.json")
    assert curate(["s3://crawl/day/1/a.warc.gz"], recipe, "s3://crawl/out").digest == here.digest, "resumed"
    assert not [entry["Key"] for entry in bucket.list_objects_v2(Bucket="crawl", Prefix="out/")["Contents"] if "tmp" in entry["Key"] or "claim" in entry["Key"]]
    with pytest.raises(UserError, match="^s3://crawk/out/plan.json: .*bucket does not exist"):
        curate([str(tmp_path / "a.warc.gz")], recipe, "s3://crawk/out")
    assert "crawk" not in {entry["Name"] for entry in bucket.list_buckets()["Buckets"]}, "a misspelt bucket is not made"


def test_what_another_process_wrote_is_seen(bucket):
    fs, root = fsspec.url_to_fs("s3://crawl/shared")
    assert fs.glob(f"{root}/*") == []
    bucket.put_object(Bucket="crawl", Key="shared/part.json", Body=b"1")
    assert fs.exists(f"{root}/part.json") and fs.cat_file(f"{root}/part.json") == b"1" and len(fs.glob(f"{root}/*")) == 1
    assert not Dataset.exists("s3://crawl/shared")


def test_a_large_file_is_fetched_by_parts(web, crawl, monkeypatch):
    """Each part asks for little more than its own bytes."""
    data = crawl["a.warc.gz"] * 40
    monkeypatch.setitem(web.files, "big.warc.gz", data)
    parts = plan_parts([f"{web.url}/ranges/big.warc.gz"], len(data) // 4)
    assert len(parts) == 4
    seen = collections.Counter()
    for part in parts:
        web.asked.clear()
        seen.update(row.offset for row in records(part))
        fetched = sum(int(last) - int(first) + 1 for _, asked in web.asked for first, last in [asked.removeprefix("bytes=").split("-")])
        assert fetched < len(data) // 4 + (2 << 20)
    assert len(seen) == 150 * 40 and set(seen.values()) == {1}


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(fsspec_registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"s3://bucket/a.warc.gz: s3:// needs `pip install 'gristmill\[s3\]'`"):
        plan_parts(["s3://bucket/a.warc.gz"])
