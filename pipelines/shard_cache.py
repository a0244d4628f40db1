"""A local, bounded cache of remote shard files: each is fetched once a machine, checked on arrival, and mapped into memory.

Everything is plain files and advisory locks, which vanish with the process that holds them: no shared memory, no resource tracker and
no daemon that a Ctrl-C could leave behind (MosaicML streaming #781, #717, #824).

    <folder>/<sha256>             a file, named for what it is; several shard sets share it, and so do all processes of the machine
    <folder>/<sha256>.<pid>.part  one that is arriving; its whole size is taken at once, so that the bound holds for what is under way
    <folder>/<sha256>.lock        held by who fetches, so that others wait instead of fetching too
    <folder>/lock                 held while room is made

A file is in use while an array over it is alive anywhere: its reader holds a shared lock, and only what can be locked exclusively is
evicted, least recently opened first.
"""

import fcntl
import hashlib
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np

from pipelines.errors import UserError

CHUNK = 8 << 20
DEFAULT_GIGABYTES = 64.0


class ShardCache:
    """Files of at most `limit` bytes in a folder. Arrays stay valid as long as they are referred to; the cache itself keeps those used last.

    Raises:
        UserError: the files that are in use leave no room for the next, or what arrives is not what was recorded.
    """

    def __init__(self, folder: str | Path, limit: int):
        self.folder, self.limit = Path(folder), limit
        self.folder.mkdir(parents=True, exist_ok=True)
        self._recent: OrderedDict[str, np.ndarray] = OrderedDict()

    @classmethod
    def default(cls) -> "ShardCache":
        """In GRISTMILL_CACHE (default: ~/.cache/gristmill/shards), of GRISTMILL_CACHE_GB gigabytes (default: 64)."""
        folder = os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache/gristmill/shards"
        try:
            gigabytes = float(os.environ.get("GRISTMILL_CACHE_GB") or DEFAULT_GIGABYTES)
        except ValueError:
            raise UserError(f"GRISTMILL_CACHE_GB is {os.environ['GRISTMILL_CACHE_GB']!r}, which is no number") from None
        return cls(folder, int(gigabytes * 1e9))

    def array(self, uri: str, sha256: str, dtype: np.dtype) -> np.ndarray:
        """A remote file as an array on disk."""
        if sha256 not in self._recent:
            self._recent[sha256] = self._map(uri, sha256)
        self._recent.move_to_end(sha256)
        return self._recent[sha256].view(dtype)

    def _map(self, uri: str, sha256: str) -> np.ndarray:
        descriptor = self._hold(sha256)
        while descriptor is None:
            with _locked(self.folder / f"{sha256}.lock"):
                if not (self.folder / sha256).exists():
                    self._fetch(uri, sha256)
            descriptor = self._hold(sha256)  # None if it was evicted at once
        if not os.fstat(descriptor).st_size:
            os.close(descriptor)
            return np.zeros(0, np.uint8)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            mapped = np.memmap(file, np.uint8, mode="r")
        weakref.finalize(mapped, os.close, descriptor)  # views keep the map alive, the map keeps the lock
        return mapped

    def _hold(self, sha256: str) -> int | None:
        """A descriptor with a shared lock on a file of the cache, which then stays; None if there is no such file."""
        path = self.folder / sha256
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:  # evicted before it was locked
            os.close(descriptor)
            return None
        os.utime(descriptor)
        return descriptor

    def _fetch(self, uri: str, sha256: str) -> None:
        fs, inner = fsspec.url_to_fs(uri)
        size = fs.size(inner)
        part = self.folder / f"{sha256}.{os.getpid()}.part"
        with open(part, "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                with _locked(self.folder / "lock"):
                    self._make_room(size, uri)
                    file.truncate(size)
                seen = hashlib.sha256()
                with fs.open(inner, "rb") as source:
                    while chunk := source.read(CHUNK):
                        seen.update(chunk)
                        file.write(chunk)
                if seen.hexdigest() != sha256:
                    raise UserError(f"{uri}: the bytes that arrived do not have the SHA-256 that was recorded")
                file.flush()
                os.rename(part, self.folder / sha256)
            except BaseException:  # Ctrl-C too
                part.unlink(missing_ok=True)
                raise

    def _make_room(self, size: int, uri: str) -> None:
        """Evict until `size` more bytes fit."""
        while (over := self._bytes() + size - self.limit) > 0:
            if self._evict(over):
                continue
            if not self._recent:
                free = f"files in use leave {max(0, size - over):,} of {self.limit:,}"
                raise UserError(f"{self.folder}: {uri} needs {size:,} bytes, but {free}; raise GRISTMILL_CACHE_GB")
            self._recent.popitem(last=False)

    def _evict(self, wanted: int) -> bool:
        """Remove files that nobody uses, least recently opened first; whether any was removed."""
        removed = 0
        for path in sorted(self._files(), key=lambda path: (path.suffix != ".part", path.stat().st_mtime_ns, path.name)):
            if removed >= wanted:
                break
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                removed += max(1, os.fstat(descriptor).st_size)
                path.unlink()
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)
        return removed > 0

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self._files())

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name != "lock" and path.suffix != ".lock"]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
