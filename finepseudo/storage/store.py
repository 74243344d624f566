"""Files behind few verbs, on a local disk or on any fsspec URI such as s3://bucket/run.

A write is whole or absent: locally by rename, on object stores by their own put. Credentials and endpoints
come from where the store's own client looks for them (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL, profiles, instance roles).
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import fsspec

from finepseudo.errors import ArtefactError

log = logging.getLogger("finepseudo")

# A dead endpoint fails in bounded time; short outages are ridden out by the client's own retries.
_S3 = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 6, "mode": "standard"}},
    "default_block_size": 4 << 20,  # bytes that are read ahead at each new place of a file
    "use_listings_cache": False,
    "skip_instance_cache": True,
}


@functools.lru_cache(maxsize=16)
def _filesystem(protocol: str, pid: int) -> Any:
    """One client a process and protocol; `pid` keeps a forked child from using its parent's connections."""
    return fsspec.filesystem(protocol, **(_S3 if protocol in ("s3", "s3a") else {}))


@dataclass(frozen=True)
class Store:
    """A folder on some file system; paths given to its verbs are relative to it. Cheap to pickle."""

    root: str

    def __post_init__(self) -> None:
        root = self.root.removeprefix("file://")
        object.__setattr__(self, "root", root.rstrip("/") if "://" in root else _absolute(root))

    @property
    def _local(self) -> bool:
        return "://" not in self.root

    @property
    def _fs(self) -> Any:
        return _filesystem("file" if self._local else self.root.partition("://")[0], os.getpid())

    def uri(self, path: str = "") -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def on_disk(self, path: str) -> str:
        """Path of a file on a disk of this machine; empty where the store is another."""
        return self.uri(path) if self._local else ""

    def child(self, path: str) -> Store:
        return Store(self.uri(path))

    def read(self, path: str) -> bytes:
        """All bytes of a file; FileNotFoundError names the full address."""
        try:
            return self._fs.cat_file(self.uri(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.uri(path)}: no such file") from None

    def read_start(self, path: str, count: int) -> bytes:
        """The first so many bytes of a file, or all that it has; FileNotFoundError names the full address."""
        try:
            return self._fs.cat_file(self.uri(path), start=0, end=count)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.uri(path)}: no such file") from None

    def open(self, path: str) -> Any:
        """A file to read and seek in, which is not read at once.

        Raises FileNotFoundError with the full address; IsADirectoryError where a disk has a folder; OSError where it is
        a pipe or a device, which may never answer.
        """
        if self._local and os.path.isdir(self.uri(path)):
            raise IsADirectoryError(errno.EISDIR, "is a folder", self.uri(path))
        if self._local and os.path.exists(self.uri(path)) and not os.path.isfile(self.uri(path)):
            raise OSError(errno.EINVAL, "not a regular file", self.uri(path))
        try:
            return self._fs.open(self.uri(path), "rb")
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.uri(path)}: no such file") from None

    def write(self, path: str, data: bytes) -> None:
        """Put a whole file; readers see the old one or the new one, nothing between."""
        target = self.uri(path)
        with _disk_errors(target):
            if not self._local:
                self._fs.pipe_file(target, data)
                return
            _replace(target, io.BytesIO(data))

    def put(self, path: str, source: str) -> None:
        """Put a whole file of this machine, as `write` does; it is never in memory as a whole."""
        target = self.uri(path)
        with _disk_errors(target), open(source, "rb") as file:
            if self._local:
                _replace(target, file)
            else:
                self._fs.put_file(source, target)

    def create(self, path: str, data: bytes) -> bool:
        """Put a file only if none is there, else False. Without conditional puts in the store, a race overwrites."""
        return not self.exists(path) and self.put_new(path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        """As `create`, by the store's conditional put alone: one that has none overwrites, and this is True."""
        target = self.uri(path)
        with _disk_errors(target):
            temporary = _write_temporary(target, io.BytesIO(data)) if self._local else ""
            try:
                if self._local:
                    os.link(temporary, target)
                else:
                    self._fs.pipe_file(target, data, mode="create")
            except FileExistsError:
                return False
            finally:
                if temporary:
                    os.unlink(temporary)
            return True

    def exists(self, path: str) -> bool:
        return bool(self._fs.exists(self.uri(path)))

    def list(self, path: str = "") -> list[str]:
        """Sorted names directly below a folder, hidden and unfinished ones left out; empty if it is not there."""
        try:
            names = self._fs.ls(self.uri(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = {name.rstrip("/").rpartition("/")[2] for name in names}
        return sorted(name for name in found if name and not name.startswith("."))

    def walk(self, path: str = "") -> Iterator[str]:
        """Paths of all files below a folder, sorted in each folder; hidden files and folders are left out.

        Names are taken as they are; links to folders are followed, but never in a circle. Zero-byte objects that stand
        for a folder are no files. Names that are not UTF-8 are left out with a warning. Nothing, if it is not there.
        """
        top = self.uri(path)
        for name in _files_below(top) if self._local else self._keys_below(top):
            if any(0xD800 <= ord(letter) < 0xE000 for letter in name):
                log.warning("%s: left out, its name is not UTF-8", ascii(f"{top}/{name}"))
            elif not f"/{name}".count("/."):
                yield f"{path}/{name}" if path else name

    def _keys_below(self, top: str) -> Iterator[str]:
        try:
            found = self._fs.find(top, detail=True)
        except FileNotFoundError:
            return
        inside = self._fs._strip_protocol(top) + "/"
        for name, info in found.items():
            if info["type"] == "file" and name.startswith(inside) and not name.endswith("/"):
                yield name.removeprefix(inside)

    def sizes(self, path: str = "") -> dict[str, int]:
        """Bytes of each file directly below a folder, hidden ones left out; empty if it is not there."""
        try:
            found = self._fs.ls(self.uri(path), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        inside = f"{self._fs._strip_protocol(self.uri(path))}/"
        sizes = {one["name"].removeprefix(inside): int(one["size"]) for one in found if one["type"] == "file"}
        # A file is listed as itself, and some tools mark a folder by an object of its own name.
        return {name: size for name, size in sizes.items() if name and "/" not in name and not name.startswith(".")}

    def tag(self, path: str) -> str:
        """What changes when a file does, without reading it: its size, and its ETag or the time of its last change."""
        found = self._fs.info(self.uri(path))
        return f"{found['size']} {found.get('ETag') or found.get('etag') or found.get('mtime')}"

    def delete(self, path: str) -> None:
        """Remove a file or a folder with all in it; nothing happens if it is not there."""
        try:
            self._fs.rm(self.uri(path), recursive=True)
        except FileNotFoundError:
            return


def _absolute(path: str) -> str:
    """Of the working directory; `~` is the user's own, also where no shell has made it so."""
    return os.path.abspath(os.path.expanduser(path))


def _files_below(top: str, inside: str = "", seen: tuple[str, ...] = ()) -> Iterator[str]:
    real = os.path.realpath(os.path.join(top, inside))
    if real in seen or not os.path.isdir(real):
        return
    with os.scandir(real) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in found:
        if is_folder:
            yield from _files_below(top, f"{inside}{name}/", (*seen, real))
        else:
            yield f"{inside}{name}"


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


def _write_temporary(target: str, source: IO[bytes]) -> str:
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
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


@contextmanager
def _disk_errors(target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ArtefactError(
                f"{target}: no room left ({error.strerror}); what was committed before is intact: "
                "free space or move the run directory, then start the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise ArtefactError(f"{target}: cannot be written: {error.strerror}") from error
        raise


def located(uri: str) -> tuple[Store, str]:
    """The folder that a file or folder lies in, and its name there; of a full address, or a path from here."""
    folder, slash, name = uri.rpartition("/")
    return Store(folder + slash), name


def read_uri(uri: str) -> bytes:
    """All bytes of one file given by its full address, or by a path relative to the working directory."""
    store, name = located(uri)
    return store.read(name)
