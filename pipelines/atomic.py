"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

import os
import uuid

from fsspec.implementations.local import LocalFileSystem

from pipelines.storage import file_system, make_folder, told


def write_file(uri: str, data: bytes | str) -> None:
    """Write (or replace) a file of any file system; its folder is made if need be. Text is UTF-8."""
    fs, path = file_system(str(uri))
    folder, _, leaf = path.rpartition("/")
    temporary = f"{folder}/.tmp-{uuid.uuid4().hex}-{leaf}"
    with told(str(uri)):
        make_folder(fs, folder)
        with fs.open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        fs.mv(temporary, path)


def create_file(uri: str, data: bytes | str) -> bool:
    """Write a file unless there is one of its name: of several callers at once exactly one succeeds. Returns whether this one did."""
    fs, path = file_system(str(uri))
    content = data.encode() if isinstance(data, str) else data
    folder, _, leaf = path.rpartition("/")
    make_folder(fs, folder)
    if not isinstance(fs, LocalFileSystem):
        try:
            fs.pipe_file(path, content, mode="create")  # object stores create a key whole
        except FileExistsError:
            return False
        return True
    temporary = f"{folder}/.tmp-{uuid.uuid4().hex}-{leaf}"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.link(temporary, path)  # fails if the name is taken; a plain exclusive open would show the file before it is written
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True
