"""Block lists of any size: millions of entries as sorted 64-bit hashes, read once a process.

Formats: one entry a line (UT1's `domains` and `urls`, datatrove's lists, hosts files), comments after `#` or `!`, plain or compressed by the file's
name, at any fsspec URI. `datatrove:NAME` names a list that the datatrove package carries (domains, urls, banned_words, soft_banned_words,
banned_subwords). Five million domains are 37 MB; the chance that a look-up errs is below 10^-12.

A list changes under its name. A run therefore pins the lists it names (`pinned`): "lists/domains.txt#sha256=..." is another list once its content is another,
to the run's identity and to what a process keeps in memory.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from importlib import resources
from typing import BinaryIO

import fsspec
import numba
import numpy as np

CHUNK = 4 << 20  # bytes of a list in memory at once
_PIN = "#sha256="
_ARCHIVED = ("domains", "urls")
_ARCHIVE = "url_filterblacklistsv0_3_0.tar.gz"


class HashSet:
    """Strings by their hashes. Membership costs a few microseconds and 8 bytes an entry."""

    def __init__(self, hashes: np.ndarray):
        self._hashes = np.unique(hashes)

    @classmethod
    def of_lines(cls, *lists: BinaryIO) -> "HashSet":
        """Entries of lists of one entry a line; blanks around it and ASCII case do not matter, "0.0.0.0 host" is "host"."""
        hashes = [np.zeros(0, np.uint64)]
        for file in lists:
            rest = b""
            while chunk := file.read(CHUNK):
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                hashes.append(_hash_lines(np.frombuffer(whole + newline, np.uint8)))
            hashes.append(_hash_lines(np.frombuffer(rest + b"\n", np.uint8)))
        return cls(np.concatenate(hashes))

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, entry: str) -> bool:
        value = np.uint64(_hash(np.frombuffer(entry.lower().encode("utf-8", "replace"), np.uint8)))  # an int would cast the whole array
        place = int(np.searchsorted(self._hashes, value))
        return place < len(self._hashes) and self._hashes[place] == value


def pinned(uri: str) -> str:
    """The URI and the SHA-256 of what stands there, inflated; of a template with `{language}`, of all that it names.

    Raises:
        ValueError: it cannot be read, or is pinned already and has changed since.
    """
    name = unpinned(uri)
    digest = hashlib.sha256()
    try:
        if not (files := _named(name) if "{language}" in name else [name]):
            raise ValueError(f"no folder of word lists for {name}")
        for entry in files:
            with open_list(entry) as file:
                digest.update(f"{entry.rpartition('/')[2]}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except Exception as error:  # whatever storage libraries raise: nothing else happens here
        raise ValueError(str(error) if isinstance(error, ValueError) else f"no list or model {name}: {error}") from None
    found = f"{name}{_PIN}{digest.hexdigest()}"
    if uri not in (name, found):
        raise ValueError(f"{name} is not the file that the recipe pins: its content has changed")
    return found


def unpinned(uri: str) -> str:
    """The URI alone."""
    return uri.partition(_PIN)[0]


def _named(template: str) -> list[str]:
    fs, path = fsspec.url_to_fs(template.replace("{language}", "*"))
    return [fs.unstrip_protocol(entry) if "://" in template else entry for entry in sorted(fs.glob(path))]


@contextmanager
def open_list(uri: str) -> Iterator[BinaryIO]:
    """A list as a stream of bytes. Raises ValueError when it cannot be read."""
    uri = unpinned(uri)
    scheme, _, name = uri.partition(":")
    try:
        if scheme == "datatrove":
            with _of_datatrove(name) as file:
                yield file
        else:
            with fsspec.open(uri, "rb", compression="infer") as file:
                yield file
    except (OSError, KeyError, ImportError) as error:
        raise ValueError(f"no list or model {uri}: {error}") from None


@lru_cache(maxsize=16)
def hash_set(uris: tuple[str, ...]) -> HashSet:
    with ExitStack() as stack:
        return HashSet.of_lines(*(stack.enter_context(open_list(uri)) for uri in uris))


def read_lines(uri: str) -> list[str]:
    with open_list(uri) as file:
        return file.read().decode("utf-8", "replace").splitlines()


def entries(*uris: str) -> list[str]:
    """The distinct entries of small lists, lower case, in order of first appearance."""
    lines = (line.split("#")[0].strip().lower() for uri in uris for line in read_lines(uri))
    return list(dict.fromkeys(filter(None, lines)))


@contextmanager
def _of_datatrove(name: str) -> Iterator[BinaryIO]:
    assets = resources.files("datatrove") / "assets"
    if name in _ARCHIVED:
        with (assets / _ARCHIVE).open("rb") as file, tarfile.open(fileobj=file) as archive:
            yield archive.extractfile(name)
    else:
        with (assets / f"{name}.txt").open("rb") as file:
            yield file


@numba.njit(cache=True)
def _hash(entry: np.ndarray) -> np.uint64:
    """FNV-1a, finished by splitmix64's mix so that all bits are good."""
    h = np.uint64(0xCBF29CE484222325)
    for byte in entry:
        h = (h ^ np.uint64(byte)) * np.uint64(0x100000001B3)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@numba.njit(cache=True)
def _hash_lines(content: np.ndarray) -> np.ndarray:
    """The hash of the last blank-separated word of every line, up to a comment; ASCII upper case is folded."""
    lines = 0
    for byte in content:
        lines += byte == 10
    hashes, count = np.empty(lines, np.uint64), 0
    word, length, comment = np.empty(1 << 16, np.uint8), 0, False
    ended = False
    for byte in content:
        if byte == 10:
            if length:
                hashes[count] = _hash(word[:length])
                count += 1
            length, comment, ended = 0, False, False
        elif comment:
            continue
        elif byte <= 32:
            ended = length > 0
        elif (byte == 35 or byte == 33) and (length == 0 or ended):  # "#", "!"
            comment = True
        elif length < len(word) or ended:
            if ended:
                length, ended = 0, False
            word[length] = byte + 32 if 65 <= byte <= 90 else byte
            length += 1
    return hashes[:count]
