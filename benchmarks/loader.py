"""The loader against megatron-core, datatrove, MDS and Grain: the same tokens on disk, one run, one thread each, taking turns.

    tokens/s       windows of 4096 tokens as int64, batches of 8. Ours with labels, mask, cu_seqlens, seq_idx, position ids and document
                   ids; Megatron's GPTDataset gives tokens, labels, mask and positions without boundaries; the others give bare windows
    first batch    opening and the first batch, in a fresh process, imports not counted; resume: the same at step 1,000
    p99            of next(), over the batches of the pass
    RSS            of that fresh process, over what it held after its imports
    stall          share of a training step of --step-ms that is spent waiting for data, were nothing prefetched

A plan of 10^10 samples: 1,000 shards of 10^7 windows each, whose token files are sparse and whose `.ends` are one file under 1,000
names; opening maps all of them. A peer that is not installed is left out with a line. Needs .venv-peers for the peers.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LENGTH, BATCH = 4096, 8


def make(folder: Path, tokens: int) -> None:
    """The same documents (log-normal lengths, a median of 700 tokens) as our shards and as the peers' files."""
    from pipelines import megatron
    from pipelines.mixture import Mixture, Source

    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(6.55, 1.0, tokens // 1100), 8).astype(np.int64)
    ids = rng.integers(16, 50_000, int(lengths.sum()), dtype=np.uint16)
    ids[np.cumsum(lengths) - 1] = 2
    files = folder / "shards/files"
    files.mkdir(parents=True)
    (files / "web-train-00000.bin").write_bytes(ids.tobytes())
    with open(files / "web-train-00000.idx", "wb") as file:
        megatron.write_index(file, lengths, np.dtype(np.uint16))
    with open(files / "web-train-00000.ends", "wb") as file:
        megatron.write_ends(file, lengths)
    mixture = Mixture(sources=(Source(name="web", dataset="none", weight=1, max_repetition=2),), sequence_length=LENGTH, batch_size=BATCH)
    write_manifest(folder / "shards", mixture, [("web-train-00000", len(lengths), int(lengths.sum()))])
    (folder / "trove").mkdir()
    (folder / "trove/web.ds").write_bytes(ids.tobytes())
    (folder / "trove/web.ds.index").write_bytes(np.cumsum(lengths).astype("<u8").tobytes())


def write_manifest(shards: Path, mixture, entries: list[tuple[str, int, int]]) -> None:
    from pipelines.loader import plan_over
    from pipelines.shardset import FORMAT, ShardSet

    train = [{"prefix": prefix, "documents": documents, "tokens": tokens, "mask": False} for prefix, documents, tokens in entries]
    sources = [{"name": "web", "format": "text", "dataset": {"uri": "none", "name": "none", "digest": ""}, "train": train, "validation": []}]
    manifest = {"format": FORMAT, "name": "benchmark", "dataset_digest": "0", "dtype": "uint16", "sources": sources, "sha256": {}}
    manifest |= {"tokenizer": {"eos": 2, "digest": "", "vocab_size": 50_000}, "mixture": mixture.model_dump(mode="json")}
    planned = plan_over(ShardSet(str(shards), manifest), mixture)
    (shards / "manifest.json").write_text(json.dumps(manifest | {"plan": planned.model_dump(mode="json"), "plan_digest": planned.digest}))


def make_huge(folder: Path, shards: int = 1000, windows: int = 10**7, documents: int = 100_000) -> None:
    """Shards of `windows` full windows each, without the disk for them."""
    from pipelines.mixture import Mixture, Source

    files = folder / "shards/files"
    files.mkdir(parents=True)
    size = windows * LENGTH
    (files / "ends").write_bytes((np.arange(1, documents + 1, dtype=np.uint64) * np.uint64(size // documents)).tobytes())
    for number in range(shards):
        with open(files / f"web-train-{number:05d}.bin", "wb") as file:
            file.truncate(2 * size)
        os.link(files / "ends", files / f"web-train-{number:05d}.ends")
    mixture = Mixture(sources=(Source(name="web", dataset="none", weight=1),), sequence_length=LENGTH, batch_size=BATCH)
    write_manifest(folder / "shards", mixture, [(f"web-train-{number:05d}", documents, size) for number in range(shards)])


# -- a loader is a function (folder, step) -> an iterator of batches; imports come before it is called ----------------------------------------


def ours(folder):
    from pipelines.loader import TokenStream

    return lambda step: iter(TokenStream(f"{folder}/shards", step=step))


def ours_best_fit(folder):
    from pipelines.loader import TokenStream
    from pipelines.shardset import ShardSet

    mixture = ShardSet.open(f"{folder}/shards").mixture.model_copy(update={"packing": "best_fit"})
    TokenStream(f"{folder}/shards", mixture=mixture)  # the window index is written once
    return lambda step: iter(TokenStream(f"{folder}/shards", mixture=mixture, step=step))


def megatron_core(folder):
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        eod, pad, vocab_size, unique_identifiers = 2, 0, 50_000, {"name": "none"}

    config = GPTDatasetConfig(
        random_seed=1, sequence_length=LENGTH, split="1,0,0", reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
        create_attention_mask=False, path_to_cache=f"{folder}/megatron-cache", tokenizer=Tokenizer(), blend=([f"{folder}/shards/files/web-train-00000"], None),
    )

    def open_at(step):
        indexed = IndexedDataset(f"{folder}/shards/files/web-train-00000")
        dataset = GPTDataset(indexed, f"{folder}/shards/files/web-train-00000", np.arange(len(indexed), dtype=np.int32), None, Split.train, config)
        keys = ("tokens", "labels", "loss_mask", "position_ids")
        for start in range(step * BATCH, len(dataset) - BATCH, BATCH):
            rows = [dataset[i] for i in range(start, start + BATCH)]
            yield {key: torch.stack([row[key] for row in rows]) for key in keys}

    return open_at


def datatrove(folder):
    import torch
    from datatrove.utils.dataset import DatatroveFolderDataset

    def open_at(step):
        dataset = DatatroveFolderDataset(f"{folder}/trove", LENGTH, filename_pattern="*.ds", token_size=2, shuffle=True, seed=1)
        for start in range(step * BATCH, len(dataset) - BATCH, BATCH):
            yield torch.stack([dataset[i]["input_ids"] for i in range(start, start + BATCH)])

    return open_at


def mds(folder):
    import torch
    from loader_proofs import without_vision

    without_vision()
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    ids = np.memmap(f"{folder}/shards/files/web-train-00000.bin", np.uint16, mode="r")
    if not Path(f"{folder}/mds").exists():
        with MDSWriter(out=f"{folder}/mds", columns={"tokens": f"ndarray:uint16:{LENGTH}"}) as writer:
            for start in range(0, len(ids) - LENGTH, LENGTH):
                writer.write({"tokens": np.asarray(ids[start : start + LENGTH])})

    def open_at(step):
        clean_stale_shared_memory()
        dataset = StreamingDataset(local=f"{folder}/mds", batch_size=BATCH, shuffle=True, shuffle_seed=1, num_canonical_nodes=1)
        if step:
            dataset.load_state_dict({"epoch": 0, "sample_in_epoch": step * BATCH, "num_canonical_nodes": 1, "shuffle_seed": 1, "initial_physical_nodes": 1})
        rows = iter(dataset)
        while True:
            batch = [row["tokens"] for _, row in zip(range(BATCH), rows)]
            if len(batch) < BATCH:
                return
            yield torch.from_numpy(np.stack(batch).astype(np.int64))

    return open_at


def grain(folder):
    import grain.python as pg

    class Windows:
        def __init__(self):
            self.ids = np.memmap(f"{folder}/shards/files/web-train-00000.bin", np.uint16, mode="r")

        def __len__(self):
            return len(self.ids) // LENGTH

        def __getitem__(self, index):
            return self.ids[index * LENGTH : (index + 1) * LENGTH].astype(np.int64)

    def open_at(step):
        options = pg.ReadOptions(num_threads=1, prefetch_buffer_size=16)
        return iter(pg.MapDataset.source(Windows()).shuffle(seed=1)[step * BATCH :].to_iter_dataset(options).batch(BATCH))

    return open_at


LOADERS = {
    "gristmill": ours, "gristmill, best-fit": ours_best_fit,
    "megatron-core": megatron_core, "datatrove": datatrove, "mosaicml-streaming": mds, "grain": grain,
}


def megabytes() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def opened(name: str, folder: str, step: int) -> dict[str, float]:
    """In a fresh process: seconds to the first batch at a step (caches and compiled code are warm), and what it takes of memory."""
    paths = [str(Path(__file__).parent), os.getcwd()]
    code = f"import sys; sys.path[:0] = {paths!r}; import loader; loader.open_once({name!r}, {folder!r}, {step})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError((ran.stderr.strip().splitlines() or ["no result"])[-1])
    return json.loads(lines[0][7:])


def open_once(name: str, folder: str, step: int) -> None:
    open_at = LOADERS[name](folder)
    if name.startswith("gristmill"):
        import pipelines.loader  # noqa: F401
    gc.collect()
    before, start = megabytes(), time.perf_counter()
    rows = open_at(step)
    first = next(rows)
    seconds = time.perf_counter() - start
    print("\nRESULT " + json.dumps({"seconds": seconds, "grown": megabytes() - before, "rss": megabytes(), "kind": type(first).__name__}))


def pass_over(open_at, batches: int) -> tuple[float, list[float]]:
    """Tokens/s of CPU time, and the seconds of each next()."""
    rows, times = open_at(0), []
    next(rows)
    cpu = time.process_time()
    for _ in range(batches):
        start = time.perf_counter()
        next(rows)
        times.append(time.perf_counter() - start)
    return batches * BATCH * LENGTH / (time.process_time() - cpu), times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64_000_000)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=100.0, help="a training step on the same batch, for the stall")
    parser.add_argument("--only", nargs="*", choices=LOADERS, default=list(LOADERS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "data", options.tokens)
        loaders = {}
        for name in options.only:
            try:
                loaders[name] = LOADERS[name](f"{folder}/data")
            except ImportError as error:
                print(f"{name}: not installed here ({error})\n")
        rates, times = {name: [] for name in loaders}, {name: [] for name in loaders}
        for _ in range(options.passes):
            for name, open_at in list(loaders.items()):
                rate, taken = pass_over(open_at, options.batches)
                rates[name].append(rate)
                times[name] += taken
        reference = max(rates["megatron-core"]) if rates.get("megatron-core") else None
        print("| loader | Mtokens/s | against Megatron | first batch, ms | resume, ms | p99 of next(), ms | RSS grown, MB | stall |\n|" + "---|" * 8)
        for name in loaders:
            first, again = (min((opened(name, f"{folder}/data", step) for _ in range(3)), key=lambda one: one["seconds"]) for step in (0, 1000))
            p99 = statistics.quantiles(times[name], n=100)[98] * 1000
            mean = statistics.mean(times[name]) * 1000
            ratio = f"{max(rates[name]) / reference:.2f}" if reference else "–"
            cells = [f"{max(rates[name]) / 1e6:.0f}", ratio, f"{first['seconds'] * 1000:.0f}", f"{again['seconds'] * 1000:.0f}", f"{p99:.2f}"]
            print(f"| {name} | " + " | ".join([*cells, f"{first['grown']:.0f}", f"{mean / (mean + options.step_ms):.2%}"]) + " |", flush=True)
        make_huge(Path(folder) / "huge")
        print("\n| a plan of 10^10 samples | seconds | RSS, MB (whole process) |\n|---|---|---|")
        for label, step in (("opened, first batch", 0), ("resumed in its middle", 10**10 // BATCH // 2)):
            one = min((opened("gristmill", f"{folder}/huge", step) for _ in range(3)), key=lambda one: one["seconds"])
            print(f"| {label} | {one['seconds']:.2f} | {one['rss']:.0f} |")


if __name__ == "__main__":
    main()
