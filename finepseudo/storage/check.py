"""Whether a store does what a run asks of it: write, read, list, create only once, delete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from finepseudo.errors import StorageError
from finepseudo.storage.store import Store


def check_store(store: Store, folder: str) -> bool:
    """Do all of it with small files in a folder of the store, which is gone afterwards.

    Returns whether the store itself refuses to create a file twice: False where of two processes that create the same
    file both believe to be the first.
    Raises StorageError: what it does not do, and the reason.
    """
    path = f"{folder}/probe"
    with _doing("write a file", store):
        store.write(path, b"1")
    with _doing("read what was written", store):
        _expect(store.read(path), b"1")
    with _doing("list what was written", store):
        _expect(store.list(folder), ["probe"])
    with _doing("create a file", store):
        once, twice = (store.put_new(f"{folder}/once", data) for data in (b"1", b"2"))
        _expect([once], [True])
    with _doing("delete a file", store):
        store.delete(folder)
        _expect(store.list(folder), [])
    return not twice


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"expected {expected}, got {found}")


@contextmanager
def _doing(what: str, store: Store) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # clients of stores raise errors of many libraries
        said = " ".join(str(error).split())[:200] or type(error).__name__
        look = "address, credentials, endpoint and rights" if "://" in store.root else "the path and its rights"
        raise StorageError(f"{store.uri()}: cannot {what}: {said}; check {look}") from error
