"""One writer at a time in a folder: a lease, which its holder renews, and by whose number commits are fenced.

`lease/<epoch>.json` says who holds it; the highest epoch counts. The next holder creates the file of the next epoch,
which the store lets one of many do; where it lets several, who wrote last has it, after a moment. A holder that lives
renews its file. One whose file has not changed for EXPIRES_S, by the clock of who waits, or whose process is seen to be
gone, is followed. Should it wake up again, its next commit finds a higher epoch and raises. Between that look and the
marker lies one call to the store: what slips through there was made of the same inputs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finepseudo.errors import LeaseError, StorageError
from finepseudo.storage.store import Store

log = logging.getLogger("finepseudo")

FOLDER = "lease"
RENEW_S = 5.0
EXPIRES_S = 30.0
SETTLE_S = 3.0  # for racers to have written, where a store creates a file twice


@dataclass
class _Held:
    store: Store  # fenced
    epoch: int
    me: dict[str, Any]
    users: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    writing: threading.Lock = field(default_factory=threading.Lock)


_here: dict[str, _Held] = {}  # what this process holds
_one_at_a_time = threading.RLock()


@contextmanager
def held(store: Store) -> Iterator[Store]:
    """The folder, within the block this process's alone: what is committed to the store that is given is fenced.

    A process that holds it already goes on with that. Raises LeaseError: another holds it.
    """
    with _one_at_a_time:
        mine = _here[store.root] = _here.get(store.root) or _begun(store)
        mine.users += 1
    try:
        yield mine.store
    finally:
        with _one_at_a_time:
            mine.users -= 1
            if not mine.users:
                release(store)


def release(store: Store) -> None:
    """Let the next one have it at once, and not when the lease expires."""
    mine = _here.pop(store.root, None)
    if mine is not None:
        mine.over.set()
        with mine.writing, contextlib.suppress(StorageError):  # it expires all the same
            if _last(store) == mine.epoch:
                store.write(_file(mine.epoch), _said({**mine.me, "released": True}))


def _begun(store: Store) -> _Held:
    me = _me()
    epoch = _taken(store, me)
    mine = _Held(replace(store, fence=(store.root, epoch)), epoch, me)
    threading.Thread(target=_renew, args=(mine,), daemon=True).start()
    return mine


def check_fence(store: Store) -> None:
    """Raises LeaseError: another has taken the folder over from who holds this store."""
    if store.fence is None:
        return
    root, epoch = store.fence
    where = Store(root, store.patience_s)
    if (last := _last(where)) > epoch:
        raise LeaseError(
            f"{root}: taken over by {_who(_read(where, last))}, since this job did not renew its lease for "
            f"{EXPIRES_S:g} s; nothing more is committed by this one"
        )


def _taken(store: Store, me: dict[str, Any]) -> int:
    """The epoch that is this process's from now on. Raises LeaseError."""
    while True:
        last = _last(store)
        holder = _read(store, last)
        if holder and not holder.get("released"):
            _await_end(store, last, holder)
        epoch = last + 1
        if store.put_new(_file(epoch), _said(me)) and store.put_new(_file(epoch), _said(me)):
            time.sleep(SETTLE_S)  # the store creates a file twice: who wrote last has it
        # What is there decides: the store's answer to who created it may have been lost.
        if (there := _read(store, epoch)) and there["id"] == me["id"]:
            for old in range(max(1, last - 1), epoch):
                store.delete(_file(old))
            return epoch


def _await_end(store: Store, epoch: int, holder: dict[str, Any]) -> None:
    """Return when a holder is gone. Raises LeaseError: it is not."""
    refusal = LeaseError(
        f"{store.uri()}: {_who(holder)} works in it; wait for its end or stop it, or use another directory"
    )
    alive = _alive(holder)
    if alive:
        raise refusal
    ends = time.monotonic() + EXPIRES_S
    if alive is None:
        log.info("%s: %s may still work in it; looking for %g s", store.uri(), _who(holder), EXPIRES_S)
    while alive is None and time.monotonic() < ends:
        time.sleep(RENEW_S / 5)
        if _last(store) != epoch or (seen := _read(store, epoch)) is None or seen.get("released"):
            return
        if seen != holder:
            raise refusal
    log.info("%s: taken over from %s, which is gone", store.uri(), _who(holder))


def _renew(mine: _Held) -> None:
    store, number = replace(mine.store, patience_s=0.0), 0
    while not mine.over.wait(RENEW_S):
        number += 1
        with mine.writing, contextlib.suppress(StorageError):  # an outage: who waits cannot see anything either
            if not mine.over.is_set() and _last(store) == mine.epoch:  # a release stays the last word
                store.write(_file(mine.epoch), _said({**mine.me, "renewed": number}))


def _last(store: Store) -> int:
    """The highest epoch; 0 where nobody ever held it."""
    return max((int(name[:-5]) for name in store.list(FOLDER) if name[:-5].isdigit()), default=0)


def _file(epoch: int) -> str:
    return f"{FOLDER}/{epoch:08d}.json"


def _said(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _read(store: Store, epoch: int) -> dict[str, Any] | None:
    """Who holds an epoch; None where nobody does, or its file was cut by a crash."""
    try:
        body = json.loads(store.read(_file(epoch)))
    except (FileNotFoundError, ValueError):
        return None
    return body if isinstance(body, dict) and "id" in body else None


def _who(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another job"
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"


def _me() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return {"id": uuid.uuid4().hex, "pid": os.getpid(), "since": since, **_place(), "started": _started(os.getpid())}


def _place() -> dict[str, str]:
    """Where process numbers mean the same: a start of a machine, and a space of them in it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "space": os.readlink(space) if space.is_symlink() else "",
    }


def _alive(holder: dict[str, Any]) -> bool | None:
    """Whether a holder's process is there; None where that cannot be seen from here."""
    here = _place()
    if not here["boot"] or any(holder.get(name) != value for name, value in here.items()):
        return None
    return _started(holder["pid"]) == holder["started"]


def _started(pid: int) -> str:
    """When a process was started, in ticks since the machine was; empty where there is none, or it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
