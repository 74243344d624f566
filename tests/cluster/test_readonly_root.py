"""A whole run where nothing can be written but what the pods of the manifests mount: /tmp and /dev/shm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In mounts of its own, which end with it. The checkout may lie below /tmp, so it is seen at /mnt.
ALONE = """
set -eu
mount --make-rprivate /
mount --bind "$1" /mnt
[ ! -d ~/.cache/finepseudo ] || cp -a ~/.cache/finepseudo "$2"   # as in the image: nothing is compiled in a pod
exec 3<"$2"
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mkdir /tmp/.cache
cp -a /proc/self/fd/3/. /tmp/.cache
for place in $(awk '{print $5}' /proc/self/mountinfo | sort -r); do
  case $place in /tmp|/dev/*|/dev|/proc*|/sys*) ;; *) mount -o remount,bind,ro "$place" 2>/dev/null || true ;; esac
done
for place in /mnt "$HOME" /; do
  if touch "$place/written" 2>/dev/null; then echo "$place can be written"; exit 9; fi
done
cd /mnt
shift 2
export HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/mnt
exec "$@"
"""


def alone(folder, *command, timeout):
    inside = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TMPDIR", "TORCH_"))}
    inside["RAY_worker_niceness"] = "0"
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", ALONE, "bash", ROOT, folder, *command],
        env=inside, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_writes_to_the_mounts_alone(tmp_path):
    if sys.prefix.startswith("/tmp/"):
        pytest.skip(f"hides /tmp, where {sys.prefix} lies")
    probe = alone(tmp_path, "true", timeout=60)
    assert probe.returncode != 9, probe.stdout
    if probe.returncode != 0:
        pytest.skip(f"may not mount file systems here: {probe.stderr.strip()}")
    short = ("--methods", "finepseudo", "--gitdl.frame-steps", "0", "--gitdl.video-steps", "0")
    done = alone(tmp_path, sys.executable, "jobs/run.py", "rehearsal_smoke", "--run", "/tmp/run", *short, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "results: /tmp/run/results.json" in done.stdout
