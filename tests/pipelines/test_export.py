"""Other projects' formats hold the same tokens: read by datatrove itself, and by readers written from the formats' descriptions."""

import gzip
import hashlib
import json
import struct

import numpy as np
import pytest
from shard_sets import make

from pipelines.errors import UserError
from pipelines.export import export


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make(tmp_path_factory.mktemp("export"))[2]


def test_datatrove_reads_its_format(shards, tmp_path):
    datatrove = pytest.importorskip("datatrove.utils.dataset")
    folder = export(shards.uri, "ds", tmp_path)[0]
    assert folder.name == "web-train"
    for shard in shards.shards("web"):
        theirs = datatrove.DatatroveFileDataset(str(folder / f"{shard.prefix}.ds"), seq_len=16, return_positions=True)
        assert len(theirs) == shard.token_count // 17
        starts = np.concatenate(([0], shard.ends[:-1])).astype(int)
        for index in range(len(theirs)):
            item, window = theirs[index], np.arange(index * 17, index * 17 + 17)
            assert np.array_equal(item["input_ids"].numpy(), shard.tokens[window])
            # Their positions begin anew in every window; ours say where a document does.
            begins = starts[np.searchsorted(starts, window, side="right") - 1]
            assert np.array_equal(item["positions"].numpy(), window - np.maximum(begins, window[0]))
    whole = datatrove.DatatroveFolderDataset(str(folder), seq_len=16, shuffle=False)
    assert len(whole) == sum(shard.token_count // 17 for shard in shards.shards("web"))


def test_olmo(shards, tmp_path):
    folder = export(shards.uri, "npy", tmp_path)[0]
    for shard in shards.shards("web"):
        tokens = np.memmap(folder / f"{shard.prefix}.npy", np.uint16, mode="r")
        rows = [line.split(",") for line in gzip.open(folder / f"{shard.prefix}.csv.gz", "rt").read().split()]
        assert len(rows) == shard.documents
        for index, (start, end, identity, source, place) in enumerate(rows):
            assert (identity, source, place) == (shard.ids[index], "web", str(index))
            assert np.array_equal(tokens[int(start) : int(end)], shard.document(index))


def test_mds(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.export.MDS_LIMIT", 2000)
    folder = export(shards.uri, "mds", tmp_path)[0]
    found = {}
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2 and len(index["shards"]) > 3
    for entry in index["shards"]:
        data = (folder / entry["raw_data"]["basename"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["raw_data"]["hashes"]["sha256"] and len(data) == entry["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", data)
        assert count == entry["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert offsets[-1] == len(data)
        for start, end in zip(offsets, offsets[1:], strict=False):
            sizes = struct.unpack_from("<2I", data, start)
            identity = data[start + 8 : start + 8 + sizes[0]].decode()
            body = data[start + 8 + sizes[0] : end]
            assert body[0] in (0b100, 0b101) and len(body) == sizes[1]
            width = 1 + (body[0] & 3)
            tokens = np.frombuffer(body, np.uint16, offset=1 + width)
            assert int.from_bytes(body[1 : 1 + width], "little") == len(tokens)
            found[identity] = tokens.tolist()
    assert found == {identity: shard.document(i).tolist() for shard in shards.shards("web") for i, identity in enumerate(shard.ids)}


def test_masks_go_along_and_mistakes_are_told(shards, tmp_path):
    folder = next(folder for folder in export(shards.uri, "ds", tmp_path) if folder.name == "problems-train")
    shard = shards.shards("problems")[0]
    assert (folder / f"{shard.prefix}.ds.loss").read_bytes() == shard.mask.tobytes()
    with pytest.raises(UserError, match="unknown export format 'tar'; there are ds, npy, mds"):
        export(shards.uri, "tar", tmp_path)
