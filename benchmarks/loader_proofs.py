"""Where loaders lose count: one suite of proofs, run against ours, LitData, MosaicML Streaming (MDS) and Grain.

Three sources of documents, mixed 5 : 3 : 2. A document is one sample with a number of its own, so what was read can be counted. A run
reads batches of 8 samples over all ranks, is killed, and goes on from what it saved; each proof asks whether the multiset of samples
then equals that of the run that was never killed.

    straight          the same seed twice gives the same order
    resume            one rank, killed once, same world size
    second resume     killed, resumed, killed, resumed
    elastic           1 -> 2 -> 4 -> 2 ranks, killed between
    weights           other weights after the kill: samples already read are not read again while others are unread

Each peer is used as its documentation says: LitData's CombinedStreamingDataset in its StreamingDataLoader with the loader's state_dict; MDS's
StreamingDataset with streams by proportion, batch_size and StreamingDataLoader's state_dict; Grain's MapDataset.mix and IterDataset.mix,
sharded by slicing, with the iterator's get_state. Ranks are processes of one machine, with the environment a
launcher would give them. A package that is not installed is said to be so. Needs .venv-peers:

    .venv-peers/bin/python benchmarks/loader_proofs.py
"""

import argparse
import ast
import os
import socket
import subprocess
import sys
import tempfile
import types
from collections import Counter
from pathlib import Path

SIZES, WEIGHTS, OTHER = {"a": 600, "b": 360, "c": 240}, (5, 3, 2), (2, 3, 5)
BATCH, STEPS = 8, 100
WORLDS = (1, 2, 4, 2)
PROOFS = ("straight", "resume", "second resume", "elastic", "weights")


def number(source: int, index: int) -> int:
    return source * 10_000 + index


# -- a loader is a function (folder, rank, world, weights, state, steps) -> (batches of sample numbers, state) ---------------------------------


def ours(folder, rank, world, weights, state, steps):
    from pipelines.loader import TokenStream
    from pipelines.mixture import After
    from pipelines.shardset import ShardSet

    shards = ShardSet.open(f"{folder}/shards")
    mixture = weighed(shards.mixture, weights)
    earlier = state and state["weights"] != list(weights)
    if earlier:
        mixture = mixture.model_copy(update={"after": After(plan=state["stream"]["plan"], step=state["stream"]["step"])})
    stream = TokenStream(shards, rank=rank, world=world, mixture=mixture)
    if state and not earlier:
        stream.load_state_dict(state["stream"])
    batches = [[int(name[1:]) for name in stream.names(batch.document_ids) if name] for _, batch in zip(range(steps), stream)]
    return batches, {"stream": stream.state_dict(), "weights": list(weights)}


def weighed(mixture, weights):
    sources = [s.model_copy(update={"weight": w}) for s, w in zip(mixture.sources, weights)]
    return mixture.model_copy(update={"sources": tuple(sources), "tokens": "all"})


def make_ours(folder):
    import pyarrow as pa

    from model.chat import SPECIAL_TOKENS
    from pipelines.mixture import Mixture, Source
    from pipelines.recipe import Recipe
    from pipelines.shards import tokenize
    from pipelines.stage import Stage, run_stage
    from pipelines.tokenizer import train_tokenizer

    class Rows(Recipe):
        source: int
        count: int

    def write(payload, config, output):
        rows = [{"id": f"n{number(config.source, i)}", "text": "seven sacks of grain"} for i in range(config.count)]
        output.read(len(rows))
        output.write(pa.Table.from_pylist(rows))

    stage = Stage(name="rows", version=1, plan=lambda inputs, config: [{}], run=write)
    sources = []
    for place, (name, count) in enumerate(SIZES.items()):
        run_stage(stage, [], Rows(source=place, count=count), f"{folder}/{name}")
        sources.append(Source(name=name, dataset=f"{folder}/{name}", weight=WEIGHTS[place], max_repetition=3))
    tokenizer = train_tokenizer([s.dataset for s in sources], 300, folder / "tokenizer", special_tokens=SPECIAL_TOKENS)
    # A document is padded to a window, so that a sample is a document for us too.
    tokenize(Mixture(sources=tuple(sources), sequence_length=64, batch_size=BATCH, packing="pad"), tokenizer, f"{folder}/shards")


def litdata(folder, rank, world, weights, state, steps):
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset
    from litdata.utilities.env import _DistributedEnv

    _DistributedEnv.detect = classmethod(lambda cls: cls(world_size=world, global_rank=rank, num_nodes=1))  # torchrun's part of it
    parts = [StreamingDataset(f"{folder}/lit/{name}", shuffle=True, seed=7, drop_last=False) for name in SIZES]
    combined = CombinedStreamingDataset(parts, seed=7, weights=[w / sum(weights) for w in weights], iterate_over_all=False)
    loader = StreamingDataLoader(combined, batch_size=BATCH // world, num_workers=0)
    if state:
        loader.load_state_dict(state)
    batches = [batch["n"].tolist() for _, batch in zip(range(steps), loader)]
    return batches, loader.state_dict()


def make_litdata(folder):
    from litdata.streaming.writer import BinaryWriter

    for place, (name, count) in enumerate(SIZES.items()):
        (folder / "lit" / name).mkdir(parents=True)
        writer = BinaryWriter(str(folder / "lit" / name), chunk_size=64)
        for index in range(count):
            writer[index] = {"n": number(place, index)}
        writer.done()
        writer.merge(1)


def without_vision() -> None:
    """MDS imports its datasets of pictures, and torchvision with them, as it loads; that may be built for another torch, and tokens need none of it."""
    sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")


def mds(folder, rank, world, weights, state, steps):
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    without_vision()
    from streaming import Stream, StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    streams = [Stream(local=f"{folder}/mds/{name}", proportion=w / sum(weights)) for name, w in zip(SIZES, weights)]
    dataset = StreamingDataset(streams=streams, batch_size=BATCH // world, shuffle=True, shuffle_seed=7, num_canonical_nodes=1, epoch_size=BATCH * STEPS)
    loader = StreamingDataLoader(dataset, batch_size=BATCH // world, num_workers=0)
    if state:
        loader.load_state_dict(state)
    batches = [batch["n"].tolist() for _, batch in zip(range(steps), loader)]
    return batches, loader.state_dict()


def make_mds(folder):
    without_vision()
    from streaming import MDSWriter

    for place, (name, count) in enumerate(SIZES.items()):
        with MDSWriter(out=str(folder / "mds" / name), columns={"n": "int"}, size_limit=2048) as writer:
            for index in range(count):
                writer.write({"n": number(place, index)})


def grain_map(folder, rank, world, weights, state, steps):
    import grain.python as pg

    sets = [pg.MapDataset.source([number(place, i) for i in range(count)]).shuffle(seed=7).repeat(3) for place, count in enumerate(SIZES.values())]
    mixed = pg.MapDataset.mix(sets, weights=[w / sum(weights) for w in weights])
    return grain_batches(iter(mixed[rank::world].to_iter_dataset().batch(BATCH // world)), state, steps)


def grain_iter(folder, rank, world, weights, state, steps):
    import grain.python as pg

    sets = [pg.MapDataset.source([number(place, i) for i in range(count)]).shuffle(seed=7).repeat(3) for place, count in enumerate(SIZES.values())]
    mixed = pg.IterDataset.mix([each[rank::world].to_iter_dataset() for each in sets], weights=[w / sum(weights) for w in weights])
    return grain_batches(iter(mixed.batch(BATCH // world)), state, steps)


def grain_batches(iterator, state, steps):
    if state:
        iterator.set_state(state)
    return [[int(n) for n in batch] for _, batch in zip(range(steps), iterator)], iterator.get_state()


def make_grain(folder):
    """Its source is a list."""


LOADERS = {
    "gristmill": (make_ours, ours),
    "litdata": (make_litdata, litdata),
    "mosaicml-streaming": (make_mds, mds),
    "grain, MapDataset.mix": (make_grain, grain_map),
    "grain, IterDataset.mix": (make_grain, grain_iter),
}


# -- the proofs ------------------------------------------------------------------------------------------------------------------------------


def job(name, folder, world, weights, states, steps):
    """All ranks at once, each in a process of its own as a launcher would start it: (samples read, states saved).

    A rank sees the state of its own number, or of rank 0 if there was none.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    for rank in range(world):
        state = None if states is None else states[rank] if rank < len(states) else states[0]
        ran = subprocess.Popen([sys.executable, __file__, "--rank", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | place)
        ran.stdin.write(repr((name, str(folder), rank, world, weights, state, steps)) + "\n")
        ran.stdin.flush()
        ranks.append(ran)
    found = []
    try:
        for ran in ranks:
            said, complaints = ran.communicate(timeout=180)
            lines = [line for line in said.splitlines() if line.startswith("RESULT ")]
            if not lines:
                raise RuntimeError((complaints.strip().splitlines() or ["no result"])[-1][:110])
            found.append(ast.literal_eval(lines[0][7:]))
    finally:
        for ran in ranks:
            ran.kill()
    return [n for batches, _ in found for batch in batches for n in batch], [state for _, state in found]


def prove(name, folder, proof, whole):
    """None if the proof holds, else what went wrong. `whole` is what a run that was never killed reads."""
    if proof == "straight":
        again, _ = job(name, folder, 1, WEIGHTS, None, STEPS)
        return None if again == whole else "another order"
    if proof == "weights":
        first, states = job(name, folder, 1, WEIGHTS, None, STEPS // 4)
        second, _ = job(name, folder, 1, OTHER, states, STEPS // 4)
        return described(Counter(first + second), None)
    worlds = {"resume": (1, 1), "second resume": (1, 1, 1), "elastic": WORLDS}[proof]
    stops = [STEPS * (i + 1) // len(worlds) for i in range(len(worlds))]
    read, states, done = [], None, 0
    for world, stop in zip(worlds, stops):
        samples, states = job(name, folder, world, WEIGHTS, states, stop - done)
        read, done = read + samples, stop
    return described(Counter(read), Counter(whole))


def described(read, whole):
    """What differs from the run that was not killed; without one: what was read twice while its source had unread samples."""
    if whole is None:
        twice = 0
        for place, count in enumerate(SIZES.values()):
            here = [n for sample, n in read.items() if sample // 10_000 == place]
            twice += sum(n - 1 for n in here) if len(here) < count else sum(max(n - 2, 0) for n in here)
        return None if not twice else f"{twice} samples read again"
    lost, more = sum((whole - read).values()), sum((read - whole).values())
    return None if not lost + more else f"{lost} lost, {more} read too often"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        name, *rest = ast.literal_eval(sys.stdin.readline())
        batches, state = LOADERS[name][1](*rest)
        print("\nRESULT " + repr([batches, state]), flush=True)
        os._exit(0)  # a loader's threads and process groups need no farewell here
        return
    print("| loader | " + " | ".join(PROOFS) + " |\n|---|" + "---|" * len(PROOFS))
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only:
            folder = Path(temporary) / name
            folder.mkdir()
            try:
                LOADERS[name][0](folder)
            except ImportError as error:
                print(f"| {name} | not installed here ({error}) |" + " |" * (len(PROOFS) - 1))
                continue
            cells, whole = [], None
            for proof in PROOFS:
                try:
                    whole = whole or job(name, folder, 1, WEIGHTS, None, STEPS)[0]
                    wrong = prove(name, folder, proof, whole)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    wrong = f"raises: {error}".replace("|", "/")
                cells.append("holds" if wrong is None else f"**{wrong}**")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
