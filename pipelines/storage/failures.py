"""What a network's failures mean: try again, or tell the user in one line.

A failure that may pass (a dropped connection, a time-out, 429, 5xx) is tried again, `ATTEMPTS` times in all. One that will not (no such file, no
permission, an unknown certificate) is a UserError that names the URI and what to do. Whatever else is raised is a defect and keeps its traceback.
"""

import errno
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pipelines.errors import UserError

ATTEMPTS, PAUSE = 5, 0.5  # requests; seconds before the second, doubled before each later one
_CLIENTS = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "adlfs")  # packages whose own exceptions mean a failed request
_PASSING = {errno.EBUSY, errno.EREMOTEIO, errno.EIO, errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH}
_ASK_AGAIN = (408, 425, 429)  # of the statuses 400 to 499
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError")  # botocore's
_KEYS = {  # how access is given, by scheme
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; or FSSPEC_S3_ANON=true if the bucket is public",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS; or FSSPEC_GS_TOKEN=anon if the bucket is public",
    "https": "name the host, its login and password in ~/.netrc, or sign the address",
}

T = TypeVar("T")


def patiently(uri: str, request: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """The request's result, tried again while its failure may pass.

    Raises:
        UserError: it does not pass, or not in time.
    """
    for attempt in range(attempts):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return request()
        except Exception as error:
            if line := _final(uri, error):
                raise UserError(f"{uri}: {line}") from error
            if not (line := _passing(error)):
                raise
            failure = error
    raise UserError(f"{uri}: {line} (given up after trying again); run the same command again: finished parts are kept") from failure


@contextmanager
def told(uri: str) -> Iterator[None]:
    """Turn a failure of storage inside the block into one line about `uri`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if line := _final(uri, error) or _passing(error):
            raise UserError(f"{uri}: {line}") from error
        raise


def _final(uri: str, error: Exception) -> str:
    """What to tell of a failure that trying again does not mend, "" of any other."""
    for cause in _causes(error):
        status = _status(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted ({cause.verify_message}); name a file with its authority's in SSL_CERT_FILE"
        if isinstance(cause, PermissionError) or status in (401, 403) or type(cause).__name__ in _NO_KEYS:
            return f"access denied ({_line(cause)}); {_KEYS.get(uri.partition(':')[0], 'give credentials, or make it readable')}"
        if isinstance(cause, FileNotFoundError) or status == 404:
            return _line(cause) if "bucket" in str(cause) else "no such file"
        if 400 <= status < 500 and status not in _ASK_AGAIN:
            return f"HTTP {status} {_line(cause)}"
    refused = isinstance(error, OSError) and error.errno == errno.EINVAL  # how s3fs translates every other refusal
    return f"refused: {_line(error)}" if refused else ""


def _passing(error: Exception) -> str:
    """What failed, where trying again may help; "" where the fault lies elsewhere."""
    for cause in _causes(error):
        theirs = type(cause).__module__.partition(".")[0] in _CLIENTS
        if theirs or isinstance(cause, TimeoutError | ConnectionError | EOFError) or (isinstance(cause, OSError) and cause.errno in _PASSING):
            status = _status(cause)
            return f"HTTP {status} {_line(cause)}" if status else _line(cause)
    return ""


def _causes(error: BaseException | None) -> list[BaseException]:
    """The innermost first: fsspec wraps what happened in what it takes it for."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    return chain[::-1]


def _status(error: BaseException) -> int:
    """The HTTP status, as aiohttp or botocore keeps it; 0 if it has none."""
    status = getattr(error, "status", 0)
    if isinstance(response := getattr(error, "response", None), dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status if isinstance(status, int) else 0


def _line(error: BaseException) -> str:
    lines = str(getattr(error, "message", "") or error).splitlines()
    return (lines[0][:200] if lines else "") or type(error).__name__
