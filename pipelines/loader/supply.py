"""What shards hold, to the window: the planner's supply, and the window indices that a plan is read through.

An index is made when a plan first needs it and stays beside the shards (`windows/`), as does every plan (`plans/`), so that a later one can
say which it goes on after. Both are functions of what they are named for: whoever writes them first, writes the same bytes.
"""

import hashlib
import json
from collections.abc import Sequence

import fsspec
import numpy as np

from pipelines.atomic import write_file
from pipelines.errors import UserError
from pipelines.loader.lanes import LaneReader
from pipelines.mixture.plan import Available, Lane, MixturePlan
from pipelines.mixture.planner import plan
from pipelines.mixture.recipe import Mixture
from pipelines.packing import Concat, Indexed, Packing, Windows, unread, whole_documents, window_index
from pipelines.recipe import digest_of
from pipelines.shardset import Shard, ShardSet
from pipelines.storage import open_input


def plan_over(shards: ShardSet, mixture: Mixture) -> MixturePlan:
    """Plan a mixture over shards exactly; writes the plan, and the window indices it needs, beside them.

    Raises:
        UserError: the plan does not add up, or the plan it goes on after is not there.
    """
    earlier = saved_plan(shards, mixture.after.plan) if mixture.after else None
    planned = plan(mixture, ShardSupply(shards), earlier)
    path = f"{shards.uri}/plans/{planned.digest[:16]}.json"
    if not _exists(path):
        write_file(path, planned.model_dump_json(indent=1))
    return planned


def saved_plan(shards: ShardSet, digest: str) -> MixturePlan:
    """The plan over these shards whose digest begins so.

    Raises:
        UserError: there is none.
    """
    if digest and shards.plan.digest.startswith(digest):
        return shards.plan
    path = f"{shards.uri}/plans/{digest[:16]}.json"
    fs, root = fsspec.url_to_fs(f"{shards.uri}/plans")
    found = sorted(fs.glob(f"{root}/{digest[:16]}*.json"))
    if len(found) != 1:
        raise UserError(f"{path}: {'several plans begin so' if found else 'no such plan over these shards'}")
    with fs.open(found[0], "rb") as file:
        return MixturePlan.model_validate(json.load(file))


class ShardSupply:
    """`pipelines.mixture.Supply` over a shard set."""

    def __init__(self, shards: ShardSet):
        self.shards = shards

    def whole(self, source: str, length: int, packing: Packing) -> Available:
        if source not in self.shards.sources:
            return Available(tokens=0, windows=0)
        if packing == "concat":
            windows = open_windows(self.shards, source, length)
            return Available(tokens=windows.tokens, windows=windows.windows)
        name = f"{source}-{packing}-{length}.windows"
        return self._indexed(name, length, lambda: window_index(whole_documents(_Ends(self.shards.shards(source))), length, packing))

    def rest(self, lane: Lane, read: int, length: int, packing: Packing) -> Available | None:
        left = lane_reader(self.shards, lane).remaining(read)
        if left is None:
            return None
        named = digest_of([lane.model_dump(), read, length, packing])[:16]
        return self._indexed(f"{lane.source}-rest-{named}.windows", length, lambda: window_index(unread(*left), length, packing))

    def earlier(self, lane: Lane, read: int) -> int:
        return lane_reader(self.shards, lane).tokens(0, read)

    def _indexed(self, name: str, length: int, make) -> Available:
        path = f"{self.shards.uri}/windows/{name}"
        if not _exists(path):
            write_file(path, make())
        with open_input(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        windows = Indexed(self.shards.array(f"windows/{name}", np.dtype("<i8"), sha256), length)
        return Available(tokens=windows.tokens, windows=windows.windows, index=name, sha256=sha256)


def lane_reader(shards: ShardSet, lane: Lane) -> LaneReader:
    """A lane of a plan over shards, opened: O(shards), whatever they hold."""
    return LaneReader(lane, [open_windows(shards, lane.source, lane.sequence_length, entry) for entry in lane.passes()])


def open_windows(shards: ShardSet, source: str, length: int, entry: Available | None = None) -> Windows:
    """The windows that `entry` names, or the concatenation of a source's training shards."""
    if entry is not None and entry.index:
        return Indexed(shards.array(f"windows/{entry.index}", np.dtype("<i8"), entry.sha256), length)
    held = _Ends(shards.shards(source))
    return Concat(held, length, [shard.token_count for shard in held.shards])


class _Ends(Sequence):
    """The `.ends` of shards, each mapped when it is first looked at: of a thousand shards a batch touches a few."""

    def __init__(self, shards: list[Shard]):
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.shards[number].ends


def _exists(path: str) -> bool:
    fs, inner = fsspec.url_to_fs(path)
    return fs.exists(inner)
