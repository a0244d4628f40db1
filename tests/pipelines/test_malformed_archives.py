"""Damaged archives, each to its last readable record: what is read, what is lost and why, file by file."""

import re
import resource
import zlib
from collections import Counter

import pytest

from pipelines.read import plan_parts, records

# file: (records of every type, rows by reason, records not whole by damage)
OUTCOMES = {
    "Evil-Warc-Headers.warc": (1, {"": 1}, {"cut": 1}),
    "aut-badexample.arc.gz": (5, {"": 1, "read.empty": 2, "read.not_html": 1}, {"length": 2, "cut": 1}),
    "blackbook-truncated.arc": (9, {"": 3, "read.not_html": 5}, {}),
    "commoncrawl-2016-lf-only.warc": (18, {"": 6}, {"length": 5, "cut": 1}),
    "gzip_extra_sl.warc.gz": (1, {}, {}),
    "ipwb-broken.warc": (6, {"": 1, "read.not_html": 1}, {"length": 1}),
    "multiple-headers.warc": (1, {"": 1}, {}),
    "block-sized-records.warc.gz": (3, {"read.unknown_type": 3}, {}),
    "clipped.warc.gz": (1, {"": 1}, {"cut": 1}),
    "warcfile.warc.lz4": (50, {"": 16}, {}),
    "skip-non-open.warc.gz": (10, {"": 10}, {}),
    "transfer_compression_none_truncated.warc.gz": (3, {"": 1}, {"cut": 1}),
    "truncated_datetime.warc": (5, {"": 2}, {}),
    "unparsable-date.warc.gz": (3, {"read.http_status": 1}, {}),
    "bad_http_chunked_content.warc": (1, {"read.not_html": 1}, {}),
    "long_url.warc": (1, {"read.not_html": 1}, {}),
    "not_utf8_http_header.warc": (1, {"read.not_html": 1}, {}),
    "bad.arc": (4, {"read.empty": 3}, {"length": 1, "cut": 1}),
    "example-bad-non-chunked.warc.gz": (6, {"": 1, "read.revisit": 1}, {}),
    "example-bad.warc.gz.bad": (6, {"": 1, "read.http_status": 1, "read.revisit": 1}, {}),
    "example-digest.warc": (4, {}, {}),
    "example-space-in-target-uri.warc.gz": (2, {"read.not_html": 1}, {}),
    "example-space-in-url.arc": (2, {"": 1}, {"cut": 1}),
    "example-trunc.warc": (4, {"": 1}, {"length": 1}),
    "example-wget-bad-target-uri.warc.gz": (6, {"": 3}, {}),
    "example-wrong-chunks.warc.gz": (2, {"": 1}, {}),
    "example-bad-length.warc": (6, {"": 1, "read.revisit": 1}, {"length": 1}),
}


@pytest.fixture(scope="module")
def files(shared_data):
    return {path.name: path for path in (shared_data / "crawl/malformed").rglob("*") if path.is_file()}


def test_no_file_is_forgotten(files):
    assert set(files) == set(OUTCOMES)


@pytest.mark.parametrize("name", OUTCOMES)
def test_each_to_its_last_readable_record(files, name):
    tally = Counter()
    rows = [record for part in plan_parts([str(files[name])]) for record in records(part, tally=tally)]
    expected = OUTCOMES[name]
    assert (sum(tally.values()), dict(Counter(row.reason for row in rows)), dict(Counter(row.damage for row in rows if row.damage))) == expected
    assert all(row.detail for row in rows if row.reason and row.reason != "read.empty")
    if ".arc" not in name and "lz4" not in name:  # independently: how often a version line stands in what can be inflated
        assert expected[0] == len(re.findall(rb"(?:\A|(?<=\n))WARC/\d\.\d\d?\r?\n[A-Z]", _inflated(files[name].read_bytes())))


def test_memory(files):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in files.values():
        list(record for part in plan_parts([str(path)]) for record in records(part))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


def _inflated(data):
    if not data.startswith(b"\x1f\x8b"):
        return data
    whole = b""
    while data.startswith(b"\x1f\x8b"):
        stream = zlib.decompressobj(31)
        whole += stream.decompress(data)
        data = stream.unused_data
    return whole
