"""Files anywhere, read and written as reliably as on a disk: s3://, gs://, https://, whatever fsspec knows."""

from pipelines.storage.failures import told
from pipelines.storage.files import file_system, is_folder, make_folder, many, open_input, size_of

__all__ = ["file_system", "is_folder", "make_folder", "many", "open_input", "size_of", "told"]
