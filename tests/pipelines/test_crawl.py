"""Sources: the sample through a stubbed download, Common Crawl from a local server of its layout, one's own files."""

import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading

import fsspec
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipelines.crawl import archives, commoncrawl, sources
from pipelines.crawl.sources import resolve
from pipelines.errors import UserError
from pipelines.read import plan_parts, records

PAGE = b'<html><head><link rel="canonical" href="https://b.org/two"></head><body>two</body></html>'


def _sdist(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"toy-1.0/{name}")
            entry.size, entry.mtime = len(content), 1_600_000_000
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("toy-1.0/tests/evil.html")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A fake source archive behind a stubbed pip, as the whole sample."""
    built = tmp_path / "toy-1.0.tar.gz"
    table = b'import nothing_that_exists\nPAGES = {"https://a.org/one?x=1": "one.html", "note": "other.txt"}\nraise SystemExit(1)\n'
    index = json.dumps({"cache/four.html": {"url": "https://c.org/four"}}).encode()
    files = {"tests/test_pages.py": table, "tests/index.json": index, "tests/cache/four.html": b"<p>four</p>"}
    files |= { "tests/cache/one.html": b"<p>one</p>", "tests/cache/two.html": PAGE, "tests/cache/three.htm": b"<p>three</p>"}
    _sdist(built, {**files, "templates/page.html": b"<p>template</p>", "tests/empty.html": b""})
    archive = archives.Archive("toy", "1.0", hashlib.sha256(built.read_bytes()).hexdigest(), ("tests/",))
    downloads = []

    def download(wanted, folder):
        downloads.append(wanted.label)
        target = folder / built.name
        target.write_bytes(built.read_bytes())
        return target

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(archives, "download", download)
    monkeypatch.setattr(sources, "SAMPLE", (archive,))
    return downloads


def test_sample_reads_pages_with_their_urls_and_is_deterministic(toy, tmp_path):
    first = resolve("sample", str(tmp_path / "a"))
    got = {record.url: record for part in plan_parts(first) for record in records(part)}
    assert set(got) == {"https://c.org/four", "https://a.org/one?x=1", "https://b.org/two", "pypi://toy/1.0/tests/cache/three.htm"}
    assert got["https://b.org/two"].body == PAGE and got["https://b.org/two"].date == "2020-09-13T12:26:40Z"
    second = resolve("sample", str(tmp_path / "b"))
    assert [open(path, "rb").read() for path in first] == [open(path, "rb").read() for path in second]
    assert toy == ["toy-1.0"], "the second time it came from the cache"
    assert resolve("sample", str(tmp_path / "a")) == first


def test_sample_refuses_another_archive_than_the_pinned_one(toy, tmp_path, monkeypatch):
    wrong = archives.Archive("toy", "1.0", "0" * 64, ("tests/",))
    monkeypatch.setattr(sources, "SAMPLE", (wrong,))
    with pytest.raises(UserError, match="SHA-256 differs"):
        resolve("sample", str(tmp_path / "a"))
    assert not list((tmp_path / "a").glob("*.warc.gz"))


def test_without_network_one_line_says_what_to_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="--crawl") as error:
        archives.obtain(archives.SAMPLE[0])
    assert "\n" not in str(error.value) and "trafilatura==0.9.0" in str(error.value)


def _warc(count, host):
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=True)
    for n in range(count):
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
        body = io.BytesIO(f"<p>{n} {hashlib.sha256(str(n).encode()).hexdigest() * 8}</p>".encode())
        writer.write_record(writer.create_warc_record(f"http://{host}/{n}", "response", payload=body, http_headers=headers))
    return file.getvalue()


@pytest.fixture
def server():
    """Common Crawl's layout on a loopback port, with range requests."""
    files = {f"/crawl-data/CC-MAIN-2024-22/segments/1/warc/{name}.warc.gz": _warc(60, f"{name}.org") for name in "ab"}
    files["/crawl-data/CC-MAIN-2024-22/warc.paths.gz"] = gzip.compress("\n".join(sorted(path[1:] for path in files)).encode() + b"\n")
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers.get("Range")))
            content = files.get(self.path)
            if content is None:
                return self.send_error(404)
            if wanted := self.headers.get("Range"):
                first, last = map(int, wanted.removeprefix("bytes=").split("-"))
                if first >= len(content):
                    return self.send_error(416)
                about = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
                content = content[first : last + 1]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", about)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if wanted and first and files.pop("fault", None):
                content = content[: len(content) // 2]  # and the connection drops
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", files, requests
    listening.shutdown()
    listening.server_close()


def test_common_crawl_whole_files(server, tmp_path, monkeypatch):
    base, files, requests = server
    monkeypatch.setenv(commoncrawl.BASE_VARIABLE, base)
    monkeypatch.setattr(commoncrawl, "STEP", 700)
    paths = resolve("commoncrawl:CC-MAIN-2024-22?files=2", str(tmp_path))
    assert [open(path, "rb").read() for path in paths] == [files[path] for path in sorted(files) if path.endswith("warc.gz")]
    assert sum(wanted is not None for _, wanted in requests) > 4
    before = len(requests)
    assert resolve("commoncrawl:CC-MAIN-2024-22?files=2", str(tmp_path)) == paths and len(requests) == before
    with pytest.raises(UserError, match="another run"):
        resolve("commoncrawl:CC-MAIN-2024-22?files=1", str(tmp_path))


def test_common_crawl_stops_at_the_last_whole_record(server, tmp_path, monkeypatch):
    base, files, _ = server
    monkeypatch.setenv(commoncrawl.BASE_VARIABLE, base)
    (path,) = resolve("commoncrawl:CC-MAIN-2024-22?files=2&megabytes=0.009", str(tmp_path))[:1]
    content = open(path, "rb").read()
    whole = files["/crawl-data/CC-MAIN-2024-22/segments/1/warc/a.warc.gz"]
    assert whole.startswith(content) and 8000 < len(content) <= 9000
    got = [record for part in plan_parts([path]) for record in records(part)]
    assert got and not any(record.reason for record in got), "no record is cut"


def test_common_crawl_goes_on_after_an_interruption(server, tmp_path, monkeypatch):
    base, files, requests = server
    monkeypatch.setenv(commoncrawl.BASE_VARIABLE, base)
    whole = files["/crawl-data/CC-MAIN-2024-22/segments/1/warc/a.warc.gz"]
    (tmp_path / "a.warc.gz.partial").write_bytes(whole[:5000])
    (path,) = resolve("commoncrawl:CC-MAIN-2024-22", str(tmp_path))
    assert open(path, "rb").read() == whole
    assert [wanted for asked, wanted in requests if "warc/a" in asked][1].startswith("bytes=5000-"), "behind the question how long it is"


def test_common_crawl_takes_a_dropped_connection_for_no_end(server, tmp_path, monkeypatch):
    base, files, _ = server
    monkeypatch.setenv(commoncrawl.BASE_VARIABLE, base)
    files["fault"] = True
    (tmp_path / "a.warc.gz.partial").write_bytes(files["/crawl-data/CC-MAIN-2024-22/segments/1/warc/a.warc.gz"][:5000])
    (path,) = resolve("commoncrawl:CC-MAIN-2024-22", str(tmp_path))
    assert "fault" not in files and open(path, "rb").read() == files["/crawl-data/CC-MAIN-2024-22/segments/1/warc/a.warc.gz"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("commoncrawl:nonsense", "a crawl's name"),
        ("commoncrawl:CC-MAIN-2024-22?megs=5", "unknown parameter megs"),
        ("commoncrawl:CC-MAIN-2024-22?files=x", "numbers"),
        ("commoncrawl:CC-MAIN-2024-22?files=0", "at least 1"),
        ("commoncrawl:CC-MAIN-2099-01", "CC-MAIN-2099-01/warc.paths.gz: no such file"),
    ],
)
def test_common_crawl_mistakes(server, tmp_path, monkeypatch, source, message):
    monkeypatch.setenv(commoncrawl.BASE_VARIABLE, server[0])
    with pytest.raises(UserError, match=message):
        resolve(source, str(tmp_path / "out"))


def test_files_folders_globs_and_memory(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    for name in ("in/b.warc.gz", "in/sub/a.html", "in/note.md", "in/crawl.cdx.gz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in/empty.html").write_bytes(b"")
    out = str(tmp_path / "out")
    assert resolve(str(tmp_path / "in"), out) == [str(tmp_path / "in" / name) for name in ("b.warc.gz", "empty.html", "sub/a.html")]
    assert resolve(str(tmp_path / "in/*.gz"), out) == [str(tmp_path / "in/b.warc.gz")]
    assert resolve([str(tmp_path / "in/sub"), str(tmp_path / "in/sub/a.html")], out) == [str(tmp_path / "in/sub/a.html")]
    with fsspec.open("memory://crawl/m.html", "wb") as file:
        file.write(b"<p>m</p>")
    assert resolve("memory://crawl", out) == ["memory:///crawl/m.html"] or resolve("memory://crawl", out) == ["memory://crawl/m.html"]
    for bad, message in (("absent.warc", "no such file"), ("in/*.parquet", "no file matches"), ("in/note.md", "known kind"), ("in/empty.html", "empty")):
        with pytest.raises(UserError, match=message):
            resolve(str(tmp_path / bad), out)


def test_pinned_archives_are_named_once_and_by_hash():
    assert len({archive.label for archive in archives.SAMPLE}) == len(archives.SAMPLE) >= 9
    assert all(len(archive.sha256) == 64 and archive.folders for archive in archives.SAMPLE)
    assert json.dumps([archive.label for archive in archives.SAMPLE])
