"""Which sources the CPU kernel is built from, and their digest: what tells a stale build from a fresh one."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCES = ("cpu.cpp", "solve.h", "lanes.h", "build.py")


def source_digest(folder: Path, torch_version: str) -> str:
    """Of the sources in a folder and the torch that they are compiled against."""
    digest = hashlib.sha256(torch_version.encode())
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
