"""Which sources the CPU kernel is built from, and their digest: what tells a stale build from a fresh one."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCES = ("cpu.cpp", "solve.h", "lanes.h")


def source_digest(folder: Path) -> str:
    """Of the sources in a folder."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
