"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

import uuid

import fsspec


def write_file(uri: str, data: bytes | str) -> None:
    """Write (or replace) a file of any file system; its folder is made if need be. Text is UTF-8."""
    fs, path = fsspec.url_to_fs(str(uri))
    folder, _, leaf = path.rpartition("/")
    fs.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.tmp-{uuid.uuid4().hex}-{leaf}"
    with fs.open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    fs.mv(temporary, path)
