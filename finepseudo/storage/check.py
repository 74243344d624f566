"""Whether a store does what a run asks of it: write, read, list, create only once, delete."""

from __future__ import annotations

from dataclasses import replace

from finepseudo.errors import OutageError, StorageError
from finepseudo.storage.store import Store

PATIENCE_S = 10.0  # a store that is away when something starts is more often one whose address is wrong


def check_store(store: Store, folder: str) -> bool:
    """Do all of it with small files in a folder of the store, which is gone afterwards.

    Returns whether the store itself refuses to create a file twice: False where of two processes that create the same
    file both believe to be the first.
    Raises StorageError: what it does not do, and the reason.
    """
    store, path = replace(store, patience_s=PATIENCE_S), f"{folder}/probe"
    try:
        store.write(path, b"1")
        _expect(store, "read", store.read(path), b"1")
        _expect(store, "listed", store.list(folder), ["probe"])
        for data in (b"1", b"2"):
            store.put_new(f"{folder}/once", data)
        kept = store.read(f"{folder}/once")  # and not what was said: an answer may have been lost
        store.delete(folder)
        _expect(store, "deleted from", store.list(folder), [])
    except OutageError as error:
        raise StorageError(f"{error}; or check address and endpoint") from error
    except FileNotFoundError as error:
        raise StorageError(f"{error}, though it was written a moment ago") from error
    return kept == b"1"


def _expect(store: Store, done: str, found: object, expected: object) -> None:
    if found != expected:
        raise StorageError(f"{store.uri()}: cannot be {done}: expected {expected}, got {found}")
