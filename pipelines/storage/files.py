"""Opening files wherever they lie, so that readers need not know where.

A remote file is never shorter than the server said when it was opened: bytes that do not come are asked for again, then the part fails, and the same
command takes the work up there. Credentials, endpoints and certificates are configured where fsspec and its packages look for them: AWS's variables and
files, FSSPEC_* variables and ~/.config/fsspec (FSSPEC_S3_ANON=true for public buckets), SSL_CERT_FILE, HTTPS_PROXY, ~/.netrc.
"""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Protocol, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.errors import UserError
from pipelines.storage.failures import patiently, told

AHEAD = 1 << 16, 1 << 20  # bytes a request, first and after doubling: a part of two megabytes must not pay for many more
_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")  # object stores: no folders, and listings that fsspec would remember

for _scheme in _STORES:  # several processes write one dataset: what another one wrote must be seen
    fsspec.config.conf.setdefault(_scheme, {}).setdefault("use_listings_cache", False)


T = TypeVar("T")


class Remote(Protocol):
    """A file of `size` bytes; `ranged` says whether pieces of it can be fetched, else it is saved whole. A failed request is made `attempts` times."""

    size: int
    ranged: bool
    attempts: int

    def fetch(self, start: int, end: int) -> bytes: ...
    def save(self, file: BinaryIO) -> None: ...


def file_system(uri: str) -> tuple[Any, str]:
    """fsspec's file system of a URI, and the path in it.

    Raises:
        UserError: nobody knows the scheme, or its package is not installed.
    """
    try:
        if is_web(uri):
            from pipelines.storage.http import file_system as over_http

            return over_http(uri)
        return fsspec.url_to_fs(uri)
    except ImportError as error:
        needs = "`pip install 'gristmill[s3]'`" if uri.startswith(("s3:", "s3a:")) else f"another package: {error}"
        raise UserError(f"{uri}: {uri.partition('://')[0]}:// needs {needs}") from None
    except ValueError as error:
        raise UserError(f"{uri}: {error}") from None


def many(ask: Callable[[str], T], uris: Sequence[str]) -> list[T]:
    """`ask` of every URI, in order; sixteen at once, for it is the network that takes the time."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, uris))


def is_web(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def is_folder(uri: str) -> bool:
    """Whether files lie below the URI; on the web, where only a page of links can say so, whether it ends like one."""
    if is_web(uri):
        return uri.endswith("/")
    fs, path = file_system(uri)
    with told(uri):
        return fs.isdir(path)


def make_folder(fs: Any, folder: str) -> None:
    """Have a folder to write into. Object stores need none: there fsspec would make a bucket, of a misspelt name too."""
    schemes = {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}
    if schemes.isdisjoint(_STORES):
        fs.makedirs(folder, exist_ok=True)


def size_of(uri: str) -> tuple[int, bool]:
    """(bytes, whether a piece can be read without the rest); bytes are 0 if a server keeps them to itself.

    Raises:
        UserError: there is no such file, or it cannot be reached.
    """
    remote = _remote(uri)
    return (remote.size, remote.ranged) if remote else (_local_size(uri), True)


@contextmanager
def open_input(uri: str) -> Iterator[BinaryIO]:
    """Read a file, seeking at will. What a server sends only whole is fetched into a temporary file first.

    Raises:
        UserError: there is no such file; here and in every read: it cannot be reached.
    """
    remote = _remote(uri)
    if remote is None:
        _local_size(uri)
        with fsspec.open(uri, "rb") as file:
            yield file
    elif remote.ranged:
        with _Ranges(uri, remote) as file:
            yield file
    else:
        with tempfile.TemporaryFile() as file:
            patiently(uri, lambda: remote.save(file), remote.attempts)
            file.seek(0)
            yield file


def _remote(uri: str) -> Remote | None:
    """The file behind a URI; None if it lies on a disk or in memory."""
    fs, path = file_system(uri)
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return None
    if is_web(uri):
        from pipelines.storage.http import WebFile

        return patiently(uri, lambda: WebFile(fs, path))
    return patiently(uri, lambda: _Stored(fs, path), attempts=1)


def _local_size(uri: str) -> int:
    fs, path = fsspec.url_to_fs(uri)
    try:
        return fs.size(path) or 0
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None


class _Stored:
    """A file of an object store, or of any other file system that serves ranges."""

    ranged, attempts = True, 1  # the packages of object stores try again themselves

    def __init__(self, fs: Any, path: str):
        self._fs, self._path = fs, path
        about = fs.info(path)
        if about["type"] != "file":
            raise FileNotFoundError(path)
        self.size = int(about["size"])

    def fetch(self, start: int, end: int) -> bytes:
        return self._fs.cat_file(self._path, start=start, end=end)

    def save(self, file: BinaryIO) -> None:
        self._fs.get_file(self._path, file)


class _Ranges(io.RawIOBase):
    """A remote file by ranges, the further ahead the longer it is read in order: every byte that was announced, or an error."""

    def __init__(self, uri: str, remote: Remote):
        self._uri, self._remote, self._size = uri, remote, remote.size
        self._at, self._start, self._held, self._ahead = 0, -1, b"", AHEAD[0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        pieces = []
        while self._at < end:
            if not self._start <= self._at < self._start + len(self._held):
                in_order = self._at == self._start + len(self._held)
                self._ahead = min(2 * self._ahead, AHEAD[1]) if in_order else AHEAD[0]
                block = partial(self._block, self._at, min(max(end, self._at + self._ahead), self._size))
                self._start, self._held = self._at, patiently(self._uri, block, self._remote.attempts)
            piece = self._held[self._at - self._start : end - self._start]
            pieces.append(piece)
            self._at += len(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _block(self, start: int, end: int) -> bytes:
        if not (data := self._remote.fetch(start, end)):  # fewer bytes than asked for are an answer, none is not
            raise EOFError(f"no bytes came at {start:,} of {self._size:,}")
        return data[: end - start]
