"""Files behind few verbs, on a local disk or on any fsspec URI such as s3://bucket/run.

A write is whole or absent: locally by rename, on object stores by their own put. Paths are literal: nothing in them is
a pattern. Credentials and endpoints come from where the store's own client looks for them (for S3: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, profiles, instance roles).

Every verb but `on_disk`, `uri` and `child` raises StorageError where the store refuses or has no room, and OutageError
where it was away for `patience_s`, within which it is asked again (see `faults`).
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any, TypeVar

import fsspec

from finepseudo.errors import ArtefactError, StorageError
from finepseudo.storage.faults import OUTAGE_S, steadily

log = logging.getLogger("finepseudo")

T = TypeVar("T")

# The client tries once, and gives up in bounded time: `faults.steadily` is who tries again.
_S3 = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 1}},
    "default_block_size": 4 << 20,  # bytes that are read ahead at each new place of a file
    "use_listings_cache": False,
    "skip_instance_cache": True,
}


_FOLDER = "_$folder$"  # end of the names of zero-byte objects by which Hadoop's tools mark folders
DELETES = 16  # at a time
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)  # of file systems without hard links


@functools.lru_cache(maxsize=16)
def _filesystem(protocol: str, pid: int) -> Any:
    """One client a process and protocol; `pid` keeps a forked child from using its parent's connections.

    Raises StorageError: its library is not installed.
    """
    try:
        made = fsspec.filesystem(protocol, **(_S3 if protocol in ("s3", "s3a") else {}))
    except ImportError as error:
        raise StorageError(
            f"{protocol}://: {error}, here and on every node; then the same command continues"
        ) from error
    if hasattr(made, "retries"):
        made.retries = 1
    return made


@dataclass(frozen=True)
class Store:
    """A folder on some file system; paths given to its verbs are relative to it. Cheap to pickle."""

    root: str
    patience_s: float = field(default=OUTAGE_S, compare=False)
    """Seconds that it may be away before a verb gives up."""
    fence: tuple[str, int] | None = field(default=None, compare=False)
    """Folder and epoch of the lease under which it is written (see `lease`)."""

    def __post_init__(self) -> None:
        _check(self.root)
        root = self.root.removeprefix("file://")
        object.__setattr__(self, "root", root.rstrip("/") if "://" in root else _absolute(root))

    @property
    def _local(self) -> bool:
        return "://" not in self.root

    @property
    def _fs(self) -> Any:
        return _filesystem("file" if self._local else self.root.partition("://")[0], os.getpid())

    def _try(self, done: str, path: str, call: Callable[[Any, str], T], *answers: type[OSError]) -> T:
        """What a call on the file system and a full address gives, however often it takes."""
        address = self.uri(path)
        return steadily(done, address, self.patience_s, lambda: call(self._fs, address), *answers)

    def _find(self, done: str, path: str, call: Callable[[Any, str], T]) -> T:
        """The same of a file; FileNotFoundError names the full address."""
        try:
            return self._try(done, path, call, FileNotFoundError, IsADirectoryError, NotADirectoryError)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{self.uri(path)}: no such file") from None

    def uri(self, path: str = "") -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def inside(self, path: str) -> str:
        """As `uri`, of a path that stands in a file of somebody else's: ArtefactError where it leaves the folder."""
        if not is_below(path):
            raise ArtefactError(f"{self.uri()}: expected the path of a file below it, got {path!r}")
        return self.uri(path)

    def on_disk(self, path: str) -> str:
        """Path of a file on a disk of this machine; empty where the store is another."""
        return self.uri(path) if self._local else ""

    def child(self, path: str) -> Store:
        return replace(self, root=self.uri(path))

    def read(self, path: str) -> bytes:
        """All bytes of a file; FileNotFoundError names the full address."""
        return self._find("read", path, lambda fs, address: fs.cat_file(address))

    def read_start(self, path: str, count: int) -> bytes:
        """The first so many bytes of a file, or all that it has; FileNotFoundError names the full address."""
        return self._find("read", path, lambda fs, address: fs.cat_file(address, start=0, end=count))

    def open(self, path: str) -> Any:
        """A file to read and seek in, which is not read at once.

        Raises FileNotFoundError with the full address; IsADirectoryError where a disk has a folder; OSError where it is
        a pipe or a device, which may never answer.
        """
        if self._local and os.path.isdir(self.uri(path)):
            raise IsADirectoryError(errno.EISDIR, "is a folder", self.uri(path))
        if self._local and os.path.exists(self.uri(path)) and not os.path.isfile(self.uri(path)):
            raise OSError(errno.EINVAL, "not a regular file", self.uri(path))
        file = self._find("opened", path, lambda fs, address: fs.open(address, "rb"))
        return file if self._local else _Steady(file, self.uri(path), self.patience_s)

    def write(self, path: str, data: bytes) -> None:
        """Put a whole file; readers see the old one or the new one, nothing between."""

        def put(fs: Any, address: str) -> None:
            if self._local:
                _replace(address, io.BytesIO(data))
            else:
                fs.pipe_file(address, data)

        self._try("written", path, put)

    def put(self, path: str, source: str) -> None:
        """Put a whole file of this machine, as `write` does; it is never in memory as a whole."""

        def put(fs: Any, address: str) -> None:
            if self._local:
                with open(source, "rb") as file:
                    _replace(address, file)
            else:
                fs.put_file(source, address)

        self._try("written", path, put)

    def create(self, path: str, data: bytes) -> bool:
        """Put a file only if none is there, else False. Without conditional puts in the store, a race overwrites.

        Where an answer of the store was lost, this is False though it was this call that put it.
        """
        return not self.exists(path) and self.put_new(path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        """As `create`, by the store's conditional put alone: one that has none overwrites, and this is True."""

        def put(fs: Any, address: str) -> None:
            if self._local:
                _create(address, data)
            else:
                fs.pipe_file(address, data, mode="create")

        try:
            self._try("written", path, put, FileExistsError)
        except FileExistsError:
            return False
        return True

    def exists(self, path: str) -> bool:
        try:
            self._find("looked at", path, lambda fs, address: fs.info(address))
        except FileNotFoundError:
            return False
        return True

    def list(self, path: str = "") -> list[str]:
        """Sorted names directly below a folder, hidden and unfinished ones left out; empty if it is not there."""
        return sorted(name.rstrip("/") for name, _ in self._entries(path))

    def sizes(self, path: str = "") -> dict[str, int]:
        """Bytes of each file directly below a folder, hidden ones left out; empty if it is not there."""
        return {name: int(info["size"]) for name, info in self._entries(path) if info["type"] == "file"}

    def _entries(self, path: str) -> list[tuple[str, Any]]:
        """What lies directly below a folder; zero-byte objects with which tools mark a folder do not."""
        try:
            found = self._find("listed", path, lambda fs, address: fs.ls(address, detail=True))
        except FileNotFoundError:
            return []
        inside = f"{self._fs._strip_protocol(self.uri(path)).rstrip('/')}/"
        named = ((one["name"].rstrip("/"), one) for one in found)
        return [
            (name.removeprefix(inside), one)
            for name, one in named
            if name.startswith(inside) and not name.removeprefix(inside).startswith(".") and not name.endswith(_FOLDER)
        ]

    def walk(self, path: str = "") -> Iterator[str]:
        """Paths of all files below a folder, sorted in each folder; hidden files and folders are left out.

        Names are taken as they are; links to folders are followed, but never in a circle. Zero-byte objects that stand
        for a folder are no files. Names that are not UTF-8 are left out with a warning. Nothing, if it is not there.
        """
        top = self.uri(path)
        for name in self._files_below(top) if self._local else self._keys_below(path):
            if any(0xD800 <= ord(letter) < 0xE000 for letter in name):
                log.warning("%s: left out, its name is not UTF-8", ascii(f"{top}/{name}"))
            elif not f"/{name}".count("/."):
                yield f"{path}/{name}" if path else name

    def _files_below(self, top: str, inside: str = "", seen: tuple[str, ...] = ()) -> Iterator[str]:
        folder = os.path.join(top, inside)
        real = os.path.realpath(folder)
        if real in seen or not os.path.isdir(real):
            return
        for name, is_folder in steadily("listed", folder, self.patience_s, lambda: _scanned(real)):
            if is_folder:
                yield from self._files_below(top, f"{inside}{name}/", (*seen, real))
            else:
                yield f"{inside}{name}"

    def _keys_below(self, path: str) -> Iterator[str]:
        try:
            found = self._find("listed", path, lambda fs, address: fs.find(address, detail=True))
        except FileNotFoundError:
            return
        inside = self._fs._strip_protocol(self.uri(path)) + "/"
        for name, info in found.items():
            if info["type"] == "file" and name.startswith(inside) and not name.endswith(("/", _FOLDER)):
                yield name.removeprefix(inside)

    def tag(self, path: str) -> str:
        """What changes when a file does, without reading it: its size, and its ETag or the time of its last change."""
        found = self._find("looked at", path, lambda fs, address: fs.info(address))
        return f"{found['size']} {found.get('ETag') or found.get('etag') or found.get('mtime')}"

    def delete(self, path: str) -> None:
        """Remove a file or a folder with all in it; nothing happens if it is not there."""
        with suppress(FileNotFoundError):
            if self._local:
                self._find("deleted", path, lambda _, address: _remove(address))
                return
            # One by one: to fsspec's own `rm` a path is a pattern, and s3fs says nothing of what it was refused.
            keys: list[str] = self._find("listed", path, lambda fs, address: fs.find(address))
            names = [key.removeprefix(f"{self._fs._strip_protocol(self.root)}/") for key in keys if key[-1:] != "/"]
            with ThreadPoolExecutor(DELETES) as threads:
                list(threads.map(self._delete_one, names))

    def _delete_one(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._find("deleted", path, lambda fs, address: fs.rm_file(address))


class _Steady(io.RawIOBase):
    """An open file whose reads are tried again while its store is away."""

    def __init__(self, file: Any, address: str, patience_s: float) -> None:
        self._file, self._address, self._patience_s = file, address, patience_s

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int, whence: int = 0, /) -> int:
        return self._file.seek(place, whence)

    def readinto(self, buffer: Any, /) -> int:
        place, size = self._file.tell(), len(buffer)

        def again() -> bytes:
            self._file.seek(place)
            return self._file.read(size)

        data = steadily("read", self._address, self._patience_s, again)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_below(path: str) -> bool:
    """Whether a path that stands in a file of somebody else's stays below the folder that it is of."""
    return bool(path) and not (path.startswith("/") or ".." in path.split("/") or "://" in path or "\0" in path)


def _check(address: str) -> None:
    """Raises StorageError: it names a kind of store, and no place there."""
    kind, colon, place = address.partition(":")
    if not colon or not place.startswith("/") or kind not in fsspec.available_protocols():
        return
    if not place.startswith("//") or (kind != "file" and not place.strip("/")):
        where = "/folder" if kind == "file" else "bucket/folder"
        raise StorageError(f"{address}: expected {kind}://{where}, or ./{address} for a folder of that name")


def _absolute(path: str) -> str:
    """Of the working directory; `~` is the user's own, also where no shell has made it so."""
    return os.path.abspath(os.path.expanduser(path))


def _scanned(folder: str) -> list[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        return sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def own_folder(path: str) -> str:
    """A folder for this user alone, which is made if it is not there; for what would be believed if another wrote it.

    Raises ArtefactError: it is a link, of another user, or others may write in it.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ArtefactError(
            f"{path} is a link, or belongs to another user, or others may write in it; delete it, or set TMPDIR to a "
            "folder of your own"
        )
    return path


def default_cache_dir() -> str:
    """Node-local folder of decoded clips, one a user."""
    return os.path.join(tempfile.gettempdir(), f"finepseudo-cache-{os.getuid()}")


def _replace(target: str, source: IO[bytes]) -> None:
    temporary = _write_temporary(target, source)
    try:
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _create(target: str, data: bytes) -> None:
    """Raises FileExistsError. Where a file system has no hard links, a crash in between leaves a part of a file."""
    temporary = _write_temporary(target, io.BytesIO(data))
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with open(target, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    finally:
        os.unlink(temporary)


def _write_temporary(target: str, source: IO[bytes]) -> str:
    folder, name = os.path.split(target)
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:  # which is said of the file itself where one must not be there
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def located(uri: str) -> tuple[Store, str]:
    """The folder that a file or folder lies in, and its name there; of a full address, or a path from here."""
    folder, slash, name = uri.rpartition("/")
    return Store(folder + slash), name


def read_uri(uri: str) -> bytes:
    """All bytes of one file given by its full address, or by a path relative to the working directory."""
    store, name = located(uri)
    return store.read(name)
