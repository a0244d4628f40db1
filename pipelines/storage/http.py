"""One file over HTTP, asked for by ranges.

One request for the first byte tells what HEAD often may not (signed addresses are good for GET alone): whether the file is there, how long it is, whether
the server sends pieces. Bodies are taken as they are stored: servers that call a .warc.gz `Content-Encoding: gzip` must not have it inflated on the way.
"""

import re
from typing import Any, BinaryIO

import aiohttp
import fsspec
from fsspec.asyn import sync

from pipelines.errors import UserError
from pipelines.storage.failures import ATTEMPTS

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_SILENCE = 60  # seconds without a byte after which a connection counts as dropped; a large file may take as long as it likes


def file_system(uri: str) -> tuple[Any, str]:
    """fsspec's HTTP file system with these manners; what the user configured for fsspec goes before them."""
    ours = {"auto_decompress": False, "trust_env": True, "timeout": aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)}
    theirs = {**fsspec.config.conf.get("http", {}), **fsspec.config.conf.get("https", {})}.get("client_kwargs", {})
    return fsspec.url_to_fs(uri, client_kwargs={**ours, **theirs})


class WebFile:
    """The file at a URL (see `pipelines.storage.files.Remote`)."""

    attempts = ATTEMPTS  # aiohttp tries nothing again

    def __init__(self, fs: Any, url: str):
        self._fs, self._url = fs, url
        self.size, self.ranged, self._tag = sync(fs.loop, self._ask)

    def fetch(self, start: int, end: int) -> bytes:
        """Bytes from `start` on, up to `end` or fewer."""
        return sync(self._fs.loop, self._piece, start, end)

    def save(self, file: BinaryIO) -> None:
        """The whole body into a file, from its beginning."""
        sync(self._fs.loop, self._whole, file)

    async def _ask(self) -> tuple[int, bool, str]:
        async with await self._get({"Range": "bytes=0-0"}) as answer:
            tag = answer.headers.get("ETag", "")
            if answer.status == 416:  # there is no first byte
                return 0, True, tag
            answer.raise_for_status()
            if answer.status == 206 and (told := _RANGE.match(answer.headers.get("Content-Range", ""))):
                return int(told.group(3)), True, tag
            return int(answer.headers.get("Content-Length", 0)) if answer.status == 200 else 0, False, tag

    async def _piece(self, start: int, end: int) -> bytes:
        async with await self._get({"Range": f"bytes={start}-{end - 1}"}) as answer:
            answer.raise_for_status()
            told = _RANGE.match(answer.headers.get("Content-Range", ""))
            if answer.status != 206 or not told or int(told.group(1)) != start:
                raise aiohttp.ClientPayloadError(f"{answer.status} in answer to a range, which the server sent before")
            if int(told.group(3)) != self.size or answer.headers.get("ETag", self._tag) != self._tag:
                raise UserError(f"{self._url}: the file changed while it was read; its rows would be of two files")
            return await answer.content.readexactly(min(end, int(told.group(2)) + 1) - start)

    async def _whole(self, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        async with await self._get({}) as answer:
            answer.raise_for_status()
            async for piece in answer.content.iter_chunked(1 << 20):
                file.write(piece)

    async def _get(self, headers: dict[str, str]) -> aiohttp.ClientResponse:
        session = await self._fs.set_session()
        options = dict(self._fs.kwargs)
        headers = {"Accept-Encoding": "identity", **options.pop("headers", {}), **headers}
        return await session.get(self._fs.encode_url(self._url), headers=headers, **options)
