"""Folders of desks that serve a classifier: one that was killed leaves its own to the next one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from finepseudo.serve import desk

OTHER = """
import sys, time
from finepseudo.serve import desk
folder = desk._own_folder()
print(folder.name, flush=True)
time.sleep(120)
"""


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Another process with a folder of its own, which is an hour old."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", OTHER], env=env, stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        assert folder.parent == tmp_path
        (folder / "weights").write_text("x")
        hour_ago = folder.stat().st_mtime - 3600
        os.utime(folder, (hour_ago, hour_ago))
        yield process, folder
        process.kill()


def test_the_folder_of_one_that_was_killed_is_deleted(other):
    process, folder = other
    process.kill()
    process.wait(timeout=30)
    assert folder.exists()
    own = desk._own_folder()
    assert not folder.exists()
    own.cleanup()


def test_the_folder_of_one_that_works_stays(other, tmp_path):
    _, folder = other
    young = tmp_path / f"{desk.FOLDERS}young"  # made, and not locked yet
    young.mkdir()
    own = desk._own_folder()
    assert (folder / "weights").exists()
    assert young.exists()
    own.cleanup()
