"""What is wrong with a store, out of what its client raises; and calls that are tried again while it is away.

None of it is ever a property of what was asked for: a file that is not there is the only answer about a file.
"""

from __future__ import annotations

import enum
import errno
import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from finepseudo.errors import OutageError, StorageError

T = TypeVar("T")

OUTAGE_S = 120.0  # that a store may be away before a call to it is given up
WAIT_S, MOST_S = (0.2, 15.0)  # before the second attempt, and doubled up to the most before later ones; half by chance

_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)  # of a path that no file can have
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AWAY = (
    *(errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.EPIPE),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH),
)
# Classes of clients that this library does not import. None of them is a subclass of one that Python has.
_AWAY_CLASSES = frozenset(
    {
        *("botocore.HTTPClientError", "botocore.ConnectionError", "botocore.IncompleteReadError"),
        *("botocore.ResponseParserError", "aiobotocore.AioReadTimeoutError", "fsspec.FSTimeoutError"),
        *("aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError", "aiohttp.HttpProcessingError"),
        *("requests.ConnectionError", "requests.Timeout", "urllib3.HTTPError"),
        *("azure.ServiceRequestError", "azure.ServiceResponseError"),
    }
)
_REFUSED_CLASSES = frozenset({"botocore.SSLError", "aiohttp.ClientSSLError", "aiohttp.InvalidURL", "requests.SSLError"})
_CLIENTS = frozenset({"botocore", "aiobotocore", "s3fs", "aiohttp", "requests", "gcsfs", "google", "adlfs", "azure"})
_PASSING_STATUS, _FULL_STATUS = (408, 429), 507


class Kind(enum.Enum):
    """What an error of a store's client says."""

    ABSENT = enum.auto()  # what was asked for is not there
    REFUSED = enum.auto()  # and would be again: credentials, rights, an address that is none
    AWAY = enum.auto()  # it did not answer, or said that it cannot now
    FULL = enum.auto()  # no room is left
    OTHER = enum.auto()  # nothing about a store: a mistake in code


def kind_of(error: BaseException) -> Kind:
    """By what an error says itself, or what it was raised from."""
    return next((kind for link in _links(error) if (kind := _of_one(link)) is not Kind.OTHER), Kind.OTHER)


def _links(error: BaseException) -> Iterator[BaseException]:
    """An error of s3fs says less than the client's, from which it was raised."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return reversed(chain)


def _of_one(error: BaseException) -> Kind:
    names, status = _classes(error), _status(error)
    number = error.errno if isinstance(error, OSError) else None
    if status == _FULL_STATUS or number in _FULL:
        return Kind.FULL
    if isinstance(error, _ABSENT) or number in _NAMES or status == 404:
        return Kind.ABSENT
    if isinstance(error, PermissionError) or names & _REFUSED_CLASSES:
        return Kind.REFUSED
    if number in _AWAY or isinstance(error, TimeoutError | ConnectionError | EOFError) or names & _AWAY_CLASSES:
        return Kind.AWAY
    if status:
        return Kind.AWAY if status >= 500 or status in _PASSING_STATUS or _slow(error) else Kind.REFUSED
    known = isinstance(error, OSError | ValueError) or any(name.partition(".")[0] in _CLIENTS for name in names)
    return Kind.REFUSED if known else Kind.OTHER


def _classes(error: BaseException) -> frozenset[str]:
    """`library.Class` of an error and all that it is a kind of."""
    return frozenset(f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__)


def _status(error: BaseException) -> int:
    """Of an answer over HTTP, as clients keep it; 0 where there was none."""
    body = getattr(error, "response", None)
    if isinstance(body, dict):  # botocore
        return int(body.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    values = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((value for value in values if isinstance(value, int) and 400 <= value < 600), 0)


def _slow(error: Any) -> bool:
    """Some stores say 400 or 409 for what will do a little later."""
    code = error.response.get("Error", {}).get("Code", "") if isinstance(getattr(error, "response", None), dict) else ""
    return code in ("RequestTimeout", "SlowDown", "OperationAborted", "ConditionalRequestConflict")


def steadily(done: str, address: str, patience_s: float, call: Callable[[], T], *answers: type[OSError]) -> T:
    """What a call to a store returns; while the store is away it is tried again, for so many seconds at most.

    Args:
        done: what it does to the address, such as "read", for an error.
        answers: errors that the caller takes as an answer, such as FileNotFoundError; they pass as they are.
    Raises:
        OutageError: it was away for too long.
        StorageError: it refused, or has no room.
    """
    began = time.monotonic()
    for attempt in itertools.count():
        try:
            return call()
        except answers:
            raise
        except Exception as error:
            kind, now = kind_of(error), time.monotonic()
            if kind is Kind.ABSENT and FileNotFoundError in answers:
                raise FileNotFoundError(said(error)) from error
            wait_s = min(MOST_S, WAIT_S * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311  not a secret
            if kind is Kind.OTHER:
                raise
            if kind is not Kind.AWAY or now + wait_s - began > patience_s:
                raise _told(kind, done, address, error, now - began) from error
            time.sleep(wait_s)
    raise AssertionError("without end")


def said(error: BaseException) -> str:
    """An error in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _told(kind: Kind, done: str, address: str, error: Exception, away_s: float) -> StorageError:
    if kind is Kind.FULL:
        return StorageError(
            f"{address}: no room left ({said(error)}); what was committed before is intact: free space or move the run "
            "directory, then start the same command again"
        )
    if kind is Kind.AWAY:
        return OutageError(
            f"{address}: cannot be {done}, tried again for {away_s:.0f} s: {said(error)}; when the store is back, the "
            "same command continues"
        )
    look = "address, credentials, endpoint and rights" if "://" in address else "the path and its rights"
    return StorageError(f"{address}: cannot be {done}: {said(error)}; check {look}")
